"""The command line. Every verb is thin and imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from nvlm.errors import NvlmError

app = typer.Typer(
    help="Train, convert and evaluate NVLM-D-style multimodal models on Megatron-core.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
data_app = typer.Typer(help="Build, index and inspect data.", no_args_is_help=True)
convert_app = typer.Typer(help="To and from Hugging Face folders.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(convert_app, name="convert")

ConfigFile = Annotated[Path, typer.Argument(help="A run's YAML file.", metavar="CONFIG")]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Argument(help="key=value, such as train.steps=100", metavar="[KEY=VALUE]..."),
]


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved configuration and the numbers that follow from it."""
    from nvlm.config.show import show

    show(config, overrides or [], int(os.environ.get("WORLD_SIZE", "0")) or None)


@app.command("train")
def train_command(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a stage, alone or under `torchrun -m nvlm train ...`; run again to resume."""
    from nvlm.config import load_config

    checked = load_config(config, overrides or [])
    from nvlm.train.trainer import train

    train(checked)


def main() -> None:
    """Entry point: user errors become one line and exit code 2."""
    try:
        app()
    except NvlmError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
