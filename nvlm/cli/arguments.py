"""Arguments that several verbs share, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.errors import NvlmError

# Of counts; the schema's too.
LARGEST = 2**31 - 1


def path_of_user(text: str | Path) -> Path:
    """`~` and `$NAME` put in. Typer hands over defaults, too, which are paths already."""
    from nvlm.config.paths import expand_path

    try:
        return Path(expand_path(str(text)))
    except NvlmError as error:
        raise typer.BadParameter(str(error)) from None


CONFIG_HELP = "A run's YAML file, or a name of `nvlm config list`."
ConfigFile = Annotated[Path, typer.Argument(help=CONFIG_HELP, metavar="CONFIG")]
Checkpoint = Annotated[
    Path,
    typer.Argument(parser=path_of_user, metavar="CHECKPOINT", help="A checkpoint or run folder."),
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="key=value, such as train.steps=100", metavar="KEY=VALUE"),
]
Tensor = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=LARGEST, help="Tensor-parallel size, under torchrun."),
]
Pipeline = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=LARGEST, help="Pipeline-parallel size, under torchrun."),
]
