"""What a look has found, and what of it is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    wrong: str = ""  # why a run would not start or end well, and what to do
    worth_knowing: str = ""  # a run goes, but slower or less safe than it might


def print_findings(title: str, findings: Iterable[Finding], console: Console) -> None:
    """A heading and a line for each thing, with what is wrong of it below."""
    console.print(title, style="bold")
    for finding in findings:
        console.print(
            f"  {finding.what}: {finding.found}", markup=False, highlight=False, soft_wrap=True
        )
        for text, style in ((finding.wrong, "red"), (finding.worth_knowing, "yellow")):
            if text:
                console.print(f"    {text}", style=style, markup=False, soft_wrap=True)
    console.print()
