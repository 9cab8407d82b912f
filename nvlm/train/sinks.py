"""Where a run's numbers go beside the terminal: its own files, and the trackers that `log` names.

Packages of others are imported only where a setting asks for them.
"""

from __future__ import annotations

import time
from pathlib import Path

from nvlm.config.schema import RunConfig
from nvlm.errors import TrainingError
from nvlm.files import json_line
from nvlm.train.mlflow_sink import open_mlflow
from nvlm.train.run_folder import open_records, read_run_id
from nvlm.train.sink import Say, Sink


def open_json_lines(path: Path, resumed_step: int) -> tuple[Sink, str | None]:
    """A line per call in `path`, after those up to `resumed_step`; see `open_records`.

    `time` is when it was written, in seconds since 1970.
    """
    file, note = open_records(path, resumed_step)

    def write(step: int, numbers: dict[str, float]) -> None:
        file.write(json_line({"step": step, "time": round(time.time(), 3), **numbers}))
        file.flush()

    return Sink(write, lambda failed: file.close()), note


def open_trackers(config: RunConfig, resumed_step: int, say: Say) -> list[Sink]:
    """The sinks that `log` names; `say` prints a line.

    Raises:
        TrainingError, ConfigError: one of them refuses the run.
    """
    sinks = []
    if config.log.tensorboard:
        sinks.append(_open_tensorboard(config, resumed_step))
    if config.log.wandb_project:
        sinks.append(_open_wandb(config, say))
    if config.log.mlflow_experiment:
        sinks.append(open_mlflow(config, resumed_step, say))
    return sinks


def _open_tensorboard(config: RunConfig, resumed_step: int) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(config.run.dir) / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Sink(write, lambda failed: writer.close())


def _open_wandb(config: RunConfig, say: Say) -> Sink:
    """The run of the folder's id: a resumed one goes on, one of the same name does not collide."""
    import wandb  # pyright: ignore[reportMissingImports] - an optional extra

    folder = Path(config.run.dir)
    try:
        run = wandb.init(
            project=config.log.wandb_project,
            name=config.run.name,
            id=read_run_id(folder),
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
        )
    except wandb.errors.Error as error:  # no connection, a wrong key, a full account
        raise TrainingError(
            f"log.wandb_project {config.log.wandb_project}: Weights & Biases says: "
            f"{error}; set WANDB_MODE=offline to train without it"
        ) from None
    first = run.step  # a resumed run's steps go on from what the server has

    def write(step: int, numbers: dict[str, float]) -> None:
        if step >= first:
            run.log(numbers, step=step)

    if first:
        say(f"Weights & Biases has this run's steps before {first}; none of these is sent again")
    return Sink(write, lambda failed: run.finish(exit_code=int(failed)))
