"""`nvlm report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.cli.app import app
from nvlm.cli.arguments import path_of_user
from nvlm.places import check_file
from nvlm.printing import say


@app.command("report", short_help="Write a page on what runs did.")
def report_command(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=path_of_user, metavar="RUN...", help="Run folders; also of runs that go on."
        ),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            parser=path_of_user,
            metavar="FILE",
            help="HTML file to write; report.html in the first run's folder where not given.",
        ),
    ] = None,
) -> None:
    """Write one page on what runs did: curves, time, settings, samples, answers, events."""
    path = out or runs[0] / "report.html"
    from nvlm.views.report.page import read_runs, write_report

    records = read_runs(runs)
    check_file(path, "--out")
    say(f"written to {write_report(records, path)}")
