"""Arguments that several verbs share, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from nvlm.errors import NvlmError
from nvlm.printing import say

if TYPE_CHECKING:
    from nvlm.config import RunConfig

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
ConfigFileOrNone = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Argument(help=CONFIG_HELP, metavar="CONFIG"),
]
FailedStep = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--replay",
        parser=path_of_user,
        metavar="FILE",
        help="Take a step again that was not finite, from RUN/replay; without CONFIG.",
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(parser=path_of_user, metavar="CHECKPOINT", help="A checkpoint or run folder."),
]
ModelToAsk = Annotated[
    Path,
    typer.Argument(
        parser=path_of_user,
        metavar="CHECKPOINT",
        help="A checkpoint or run folder, an exported folder, or its id in the hub "
        "(OWNER/NAME@REVISION).",
    ),
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="key=value, such as train.steps=100", metavar="KEY=VALUE"),
]
StageName = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--stage", metavar="NAME", help="Which stage, of a file with stages."),
]
Tensor = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=LARGEST, help="Tensor-parallel size, under torchrun."),
]
Pipeline = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, max=LARGEST, help="Pipeline-parallel size, under torchrun."),
]
KeepVisualTokens = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Of each tile's tokens, merging those that are alike: faster, not as exact.",
    ),
]
KeepCache = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Of the keys and values of a prompt, merging the others into them: as many more "
        "questions have room, not as exact.",
    ),
]


def runs_to_show(
    config: Path,
    overrides: Sequence[str],
    stage: str | None,
    as_json: bool,
    world_size: int | None = None,
) -> Iterator[RunConfig]:
    """The run of a file, or those of its stages in turn, each after a line that names it.

    Raises:
        ConfigError: see `load_runs`; or there are several, and JSON is asked for, which has one.
    """
    from nvlm.config import load_config, load_runs

    if as_json:
        yield load_config(config, overrides, world_size, stage)
        return
    runs = load_runs(config, overrides, world_size, stage)
    for name, run in runs.items():
        if len(runs) > 1:
            say(f"stage {name}\n")
        yield run
