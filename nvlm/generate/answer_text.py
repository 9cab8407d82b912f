"""An answer's text as its tokens come: what can be shown, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# What the tokenizer says in the place of half a character.
_HALF = "\ufffd"


class AnswerText:
    """The text of one answer, given out in parts that later tokens cannot change.

    Held back are half a character, what may become a stop text, and spaces, which are dropped at
    both ends. All parts together are the text of all tokens up to the first stop text, without
    special tokens and the spaces around it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        """`tokenizer`: transformers', of which `decode` is used."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._unread: list[int] = []  # tokens that end within a character
        self._held = ""  # text that was not given out
        self._has_begun = False
        self.has_stopped = False

    def add(self, token: int) -> str:
        """The text that can be given out now; may be empty."""
        self._unread.append(token)
        text = self._tokenizer.decode(self._unread, skip_special_tokens=True)
        if text.endswith(_HALF):
            return ""
        self._unread = []
        return self._take(text)

    def finish(self) -> str:
        """The rest, where no more tokens come."""
        text = self._tokenizer.decode(self._unread, skip_special_tokens=True)
        self._unread = []
        given = self._take(text)
        rest, self._held = self._held.rstrip(), ""
        return given + self._given(rest)

    def _take(self, text: str) -> str:
        if self.has_stopped:
            return ""
        self._held += text
        ends = [end for stop in self._stop if (end := self._held.find(stop)) >= 0]
        if ends:
            self.has_stopped = True
            self._held = self._held[: min(ends)]
        ready = self._held[: len(self._held) - self._num_held_back()].rstrip()
        self._held = self._held[len(ready) :]
        return self._given(ready)

    def _given(self, text: str) -> str:
        if not self._has_begun:
            text = text.lstrip()
            self._has_begun = bool(text)
        return text

    def _num_held_back(self) -> int:
        """Characters at the end with which a stop text may begin."""
        if self.has_stopped:
            return 0
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
