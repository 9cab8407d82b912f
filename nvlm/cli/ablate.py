"""`nvlm ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.cli.app import app
from nvlm.cli.arguments import LARGEST, Overrides, path_of_user
from nvlm.errors import ConfigError
from nvlm.launch import launched


@app.command("ablate", short_help="Run a grid of ablations, and compare its cells.")
def ablate_command(
    grid: Annotated[
        str,
        typer.Argument(metavar="GRID", help="A grid's YAML file, or a name of configs/ablation."),
    ],
    overrides: Overrides = None,
    folder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--dir", parser=path_of_user, metavar="DIR", help="Folder of the cells; the grid's own."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print cells, differences and planned hours only.")
    ] = False,
    jobs: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, max=LARGEST, help="Runs side by side on this machine; 1 where not given."
        ),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write scripts that run the grid on Slurm instead.")
    ] = False,
) -> None:
    """Train the cells of a grid that are not done, compare them, and write a table and a page.

    The same command goes on after any end. KEY=VALUE is set for the base and for every cell.
    """
    if launched().world_size > 1:
        raise ConfigError("nvlm ablate starts torchrun itself: start it alone (`processes`)")
    if slurm and jobs is not None:
        raise ConfigError("--jobs is for this machine; --slurm runs all that the cluster has")
    if slurm and not dry_run:
        from nvlm.ablate.grid import prepare_slurm

        prepare_slurm(grid, folder, overrides or [])
        return
    if dry_run:
        from nvlm.ablate.grid import dry_run as show

        show(grid, folder, overrides or [])
        return
    from nvlm.ablate.grid import ablate

    ablate(grid, folder, overrides or [], jobs or 1)
