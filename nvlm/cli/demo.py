"""`nvlm demo` and `nvlm data build-demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nvlm.cli.app import app, data_app
from nvlm.cli.arguments import path_of_user
from nvlm.places import check_folder


@app.command("demo", short_help="Train, export and evaluate a tiny NVLM-D here.")
def demo_command(
    root: Annotated[
        Path, typer.Option(parser=path_of_user, metavar="DIR", help="Where everything is written.")
    ] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over instead of going on.")] = False,
) -> None:
    """Train, export and evaluate a tiny NVLM-D on this machine, end to end."""
    check_folder(root, "--root")
    from nvlm.demo.run import run_demo

    run_demo(root, fresh=fresh)


@data_app.command("build-demo", short_help="Write shards of digits, photographs, charts.")
def data_build_demo(
    folder: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="DIR", help="Where the shards go.")
    ],
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Another seed draws other samples.")
    ] = 0,
) -> None:
    """Write WebDataset shards of digits, photographs, documents, charts and text."""
    check_folder(folder, "DIR")
    from nvlm.demo.build_data import build_demo_data

    build_demo_data(folder, seed=seed)
