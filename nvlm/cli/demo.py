"""`nvlm demo` and `nvlm data build-demo`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nvlm.cli.app import app, data_app
from nvlm.cli.arguments import path_of_user
from nvlm.errors import NvlmError
from nvlm.places import check_folder

# Modules that only the demo imports -> the packages that bring them (pyproject.toml: extra `demo`).
_NEEDED = {"matplotlib": "matplotlib", "skimage": "scikit-image", "sklearn": "scikit-learn"}


@app.command("demo", short_help="Train, export and evaluate a tiny NVLM-D here.")
def demo_command(
    root: Annotated[
        Path, typer.Option(parser=path_of_user, metavar="DIR", help="Where everything is written.")
    ] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option(help="Start over instead of going on.")] = False,
) -> None:
    """Train, export and evaluate a tiny NVLM-D on this machine, end to end."""
    _find_demo()
    check_folder(root, "--root")
    from demo.run import run_demo

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
    _find_demo()
    check_folder(folder, "DIR")
    from demo.build_data import build_demo_data

    build_demo_data(folder, seed=seed)


def _find_demo() -> None:
    """Let Python find the package `demo`, which lies beside `nvlm` in a clone.

    Raises:
        NvlmError: nvlm was not installed from a clone, or without what the demo draws with.
    """
    repository = Path(__file__).resolve().parents[2]
    if not (repository / "demo" / "build_data.py").is_file():
        raise NvlmError(
            "the demo is part of the repository, not of the wheel: clone the repository and run "
            "scripts/install demo there"
        )
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise NvlmError(
            f"the demo needs {', '.join(missing)}: run scripts/install demo in {repository}"
        )
    if str(repository) not in sys.path:
        sys.path.insert(0, str(repository))
