"""`nvlm train`, `stop`."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from nvlm.cli.app import app
from nvlm.cli.arguments import (
    ConfigFileOrNone,
    FailedStep,
    Overrides,
    StageName,
    path_of_user,
)
from nvlm.errors import ConfigError
from nvlm.launch import launched
from nvlm.loading import modules_are_no_garbage


@app.command("train", short_help="Train a run or its stages; again to resume.")
def train_command(
    config: ConfigFileOrNone = None,
    overrides: Overrides = None,
    stage: StageName = None,
    allow_data_change: Annotated[
        bool,
        typer.Option(
            "--allow-data-change",
            help="Resume although seed, blend, samples or template changed; says where each source "
            "goes on.",
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Train although by `nvlm plan` the GPUs' memory is too small."
        ),
    ] = False,
    replay: FailedStep = None,
) -> None:
    """Train a run, alone or under `torchrun -m nvlm train ...`; run again to resume.

    Of a file with stages, those that are not finished in turn, or the one that --stage names.
    """
    place = launched()
    if replay is not None:
        _take_again(replay, config)
        return
    if config is None:
        raise ConfigError("nvlm train: missing argument 'CONFIG'; see `nvlm train --help`")
    from nvlm.config import load_config, load_runs
    from nvlm.config.compose import check_stage, has_stages

    if has_stages(config):
        runs = load_runs(config, overrides or [])
        check_stage(config, stage, runs)
        with modules_are_no_garbage():
            from nvlm.train.stages import train_stages

        command = shlex.join(["nvlm", "train", str(config), *(overrides or [])])
        stages = {str(name): run for name, run in runs.items()}
        train_stages(stages, command, stage, allow_data_change, force)
        return
    checked = load_config(config, overrides or [], place.world_size, stage)
    from nvlm.train.preflight import check_before_start

    if place.rank == 0:
        check_before_start(checked)
    from nvlm.train.ownership import own_run_folder

    owning = own_run_folder(Path(checked.run.dir)) if place.rank == 0 else nullcontext()
    with owning as ownership:
        with modules_are_no_garbage():
            from nvlm.train.fit import train
            from nvlm.train.start import check_memory

        if not force:
            check_memory(checked, place.world_size)
        train(checked, allow_data_change, ownership)


def _take_again(failed_step: Path, config: Path | None) -> None:
    if config is not None:
        raise typer.BadParameter("--replay takes its settings from the file: give no CONFIG")
    from nvlm.train.replay import replay

    replay(failed_step)


@app.command("stop", short_help="Ask a run to save and end.")
def stop_command(
    run: Annotated[
        Path, typer.Argument(parser=path_of_user, metavar="RUN", help="The run's folder, run.dir.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
) -> None:
    """Ask the run in a folder to save and end after its step, also from another host.

    The same `nvlm train` goes on later. Says who runs there, or what is left where nothing runs.
    """
    from nvlm.train.stop_command import stop_run

    stop_run(run, wait)
