"""What was changed about a sample to use it: noted where it happens, counted where it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# What is counted, and what it says (docs/data_rules.md has the same table).
REPAIRS = {
    "alpha_dropped": "alpha or a transparent colour is dropped; colours stay as stored",
    "byte_order_mark": "the mark before a text or a JSON is left out",
    "converted_to_rgb": "gray, palette, 1-bit or CMYK pixels are converted to RGB",
    "exif_ignored": "EXIF data cannot be read, and turns nothing",
    "first_frame": "of several frames or pictures the first is taken",
    "number_as_text": "a whole number in the place of a text is taken as its text",
    "profile_ignored": "a colour profile is ignored",
    "rotated": "EXIF rotation is applied to pixels and sides",
    "stripped": "spaces around a text are left out",
    "upper_byte": "of 16-bit pixels the upper byte is kept",
}

_collector: ContextVar[Counter[str] | None] = ContextVar("repairs", default=None)


@contextmanager
def noting_repairs() -> Iterator[Counter[str]]:
    """Collects what `note_repair` is told inside: what was done -> how often."""
    counts: Counter[str] = Counter()
    token = _collector.set(counts)
    try:
        yield counts
    finally:
        _collector.reset(token)


def note_repair(what: str) -> None:
    """Note a change by its name in `REPAIRS`, where someone collects."""
    assert what in REPAIRS, what
    counts = _collector.get()
    if counts is not None:
        counts[what] += 1
