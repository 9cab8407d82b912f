"""`nvlm config list`: the configurations that come with nvlm. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from rich.table import Table

from nvlm.config import load_runs
from nvlm.config.shipped import RUNS, run_names
from nvlm.printing import new_console
from nvlm.sizes.derived import derive

# Comments for programs, such as an editor's schema.
_NOT_FOR_PEOPLE = "yaml-language-server:"


def print_list() -> None:
    """Print each run's name, number of parameters and purpose, in one line where it fits."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("what")
    for name in run_names():
        path = RUNS / f"{name}.yaml"
        config = next(iter(load_runs(path).values()))  # stages train one model
        table.add_row(name, f"{derive(config).total.total:,}", purpose(path))
    console = new_console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # one line each, for programs that read it
    console.print(table)


def purpose(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if _NOT_FOR_PEOPLE not in line:
            words += line.removeprefix("#").split()
    text = " ".join(words)
    found = re.match(r".+?\.(?=\s|$)", text)
    return found[0].removesuffix(".") if found else text
