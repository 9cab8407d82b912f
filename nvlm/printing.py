"""What reaches the terminal and the logs: text from data shows its control characters, escaped.

A sample's key, a file's name or a model's answer may hold anything: sequences that clear the screen
or set its title, a carriage return that hides what stood before, marks that turn the direction of
reading. They are printed as `\\x1b`, `\\r`, `\\u202e`. Every line of nvlm goes through this file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.measure import Measurement
from rich.segment import Segment

# Control characters, half characters, line separators, and marks of reading direction. What joins
# letters (U+200C, U+200D) belongs to the text of some languages.
_CONTROLS = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    """`text` in one line, its control characters but those in `keep` as escapes."""

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        return character if character in keep else character.encode("unicode_escape").decode()

    return _CONTROLS.sub(escape, text)


def say(text: str, file: TextIO | None = None, end: str = "\n") -> None:
    """Print `text`, which may have several lines; without an `end`, at once."""
    print(printable(text, keep="\n\t"), file=file or sys.stdout, end=end, flush=not end)


def counted(number: int, noun: str) -> str:
    """`1 question`, `2 questions`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(items: Iterable[Any], most: int) -> str:
    """The first `most` of `items` with commas in between, and how many there are beyond these."""
    texts = [str(item) for item in items]
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + rest


def new_console(**settings: Any) -> Console:
    """A Rich console with these settings; a bar or a table on it may show text from data."""
    console = Console(**settings)
    console.push_render_hook(_PrintableHook())
    return console


class _PrintableHook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Printable(renderable) for renderable in renderables]


class _Printable:
    """A renderable whose text is printable; styles and the console's own controls are kept."""

    def __init__(self, renderable: ConsoleRenderable):
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _clean(console.render(self._renderable, options))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._renderable)


def _clean(segments: Iterable[Segment]) -> Iterable[Segment]:
    for text, style, control in segments:
        yield Segment(text if control else printable(text, keep="\n"), style, control)


def forgive_encoding() -> None:
    """Have characters that the terminal's encoding lacks printed as escapes, not raised."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
