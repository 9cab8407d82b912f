"""`nvlm doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.cli.app import app
from nvlm.cli.arguments import CONFIG_HELP, Overrides, StageName
from nvlm.launch import launched


@app.command("doctor", short_help="Look for what would keep a run from starting or ending well.")
def doctor_command(
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help=f"{CONFIG_HELP} Its places and process groups are looked at too."),
    ] = None,
    overrides: Overrides = None,
    stage: StageName = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="Limit of each check of several processes.")
    ] = 120,
) -> None:
    """Look at versions, packages, devices, limits and disks; under torchrun, at the processes too.

    These sum, exchange and compute: whether it is right, how fast it is, and which process is not
    there, wrong or slow. Nothing is made or changed. Ends with 2 where something is wrong.
    """
    place = launched()
    from nvlm.config import load_runs

    runs = load_runs(config, overrides or [], place.world_size, stage) if config else {}
    from nvlm.doctor.examine import examine

    examine(list(runs.values()), seconds)
