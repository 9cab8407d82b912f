"""Tables fit the terminal and cut no number."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nvlm.tables import print_table

HEADINGS = [
    "source",
    "samples",
    "image\ntokens",
    "text\ntokens",
    "of the\nloss",
    "tiles",
    "dropped",
]
NUMBERS = ["1,234,567", "123,456,789,012", "123,456,789,011", "12.3%", "123,456,789", "98,765,432"]


def printed(columns: int, name: str) -> list[str]:
    console = Console(width=columns, file=io.StringIO())
    print_table(console, "title [x]", HEADINGS, [[name, *NUMBERS], ["total", *"123456"]])
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("name", ["a", "coco/captions-" + "of-pictures-" * 9, "名前" * 30, "[b]"])
def test_fits_and_is_whole(columns: int, name: str):
    lines = printed(columns, name)
    width = Console(width=1000).measure  # cells, not characters
    assert all(width(line.rstrip()).maximum <= columns for line in lines if line.strip())
    text = "\n".join(lines)
    assert "…" not in text and "title [x]" in text
    assert all(text.split().count(number) == 1 for number in NUMBERS)
    parts = text.split("source")[1]
    assert name in "".join(line.split("  ")[0].strip() for line in parts.splitlines())


def test_columns_stay_together_where_they_fit():
    assert sum(line.startswith("total") for line in printed(120, "a")) == 1
    assert sum(line.startswith("total") for line in printed(80, "a")) == 2


def test_a_terminal_too_narrow_for_a_number_gets_longer_lines():
    assert set(NUMBERS) <= set("\n".join(printed(20, "a")).split())


def test_what_a_name_would_do_to_the_terminal_is_shown():
    assert "\x1b" not in "".join(printed(80, "a\x1b[31m")) and r"\x1b" in "".join(
        printed(80, "a\x1b[31m")
    )
