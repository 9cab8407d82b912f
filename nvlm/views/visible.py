"""Text to look at: what would act on a page or a terminal is spelled out."""

from __future__ import annotations

import unicodedata

# Invisible characters that scripts and emoji are made with.
_JOINERS = ("\u200c", "\u200d")


def visible(text: str) -> str:
    """The text with all that would act on a page or terminal instead of being seen, spelled out.

    Line ends and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or character in _JOINERS or not _is_invisible(character)
        else f"\\u{ord(character):04x}"
        for character in text
    )


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp")
