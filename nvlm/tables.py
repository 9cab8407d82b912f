"""Tables that fit the terminal: no number is cut, long names go on in the next line.

A pipe or a file counts as 80 columns. Where the columns do not fit beside each other, the rest
follows in further tables that repeat the first column.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nvlm.printing import printable

_GAP = 2  # between columns
_LEAST_NAME = 12


def print_table(
    console: Console,
    title: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: Sequence[str | None] | None = None,
) -> None:
    """Print `rows`; a heading may have several lines.

    Args:
        rows: cells, as many as headings. The first column is a name, the others are numbers or
            short words.
        styles: of each row.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [
        max(cell_len(line) for line in [*heading.split("\n"), *(row[at] for row in rows)])
        for at, heading in enumerate(headings)
    ]
    styles = styles or [None] * len(rows)
    if title:
        console.print(Text(title, "bold"))
    for columns in _fit(widths, console.width):
        numbers_width = sum(widths[at] + _GAP for at in columns)
        name_width = min(widths[0], max(_LEAST_NAME, console.width - numbers_width))
        # The box's own separator is the other column of the gap.
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False
        )
        table.add_column(headings[0], width=name_width, overflow="fold", vertical="bottom")
        for at in columns:
            table.add_column(headings[at], justify="right", width=widths[at], no_wrap=True)
        for row, style in zip(rows, styles, strict=True):
            table.add_row(Text(row[0]), *(Text(row[at]) for at in columns), style=style)
        # Lines longer than the terminal is wide are better than numbers that are cut.
        terminal_width = console.width
        console.width = max(terminal_width, name_width + numbers_width)
        console.print(table)
        console.width = terminal_width
        console.print()


def _fit(widths: Sequence[int], terminal_width: int) -> list[list[int]]:
    """Which columns are beside the first in each table."""
    numbers = [width + _GAP for width in widths[1:]]
    if sum(numbers) + min(widths[0], max(_LEAST_NAME, terminal_width // 4)) <= terminal_width:
        return [list(range(1, len(widths)))]  # long names go on in the next line
    name = min(widths[0], max(_LEAST_NAME, terminal_width // 3))

    def split(width: int) -> list[list[int]]:
        tables, used = [[]], name
        for at, number in enumerate(numbers, start=1):
            if tables[-1] and used + number > width:
                tables.append([])
                used = name
            tables[-1].append(at)
            used += number
        return tables

    num_tables = len(split(terminal_width))
    # As few tables as it takes, and these about equally wide.
    return next(tables for w in range(terminal_width + 1) if len(tables := split(w)) == num_tables)
