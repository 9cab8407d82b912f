"""Where a run's numbers go beside the terminal: its own files, TensorBoard, Weights & Biases.

A sink is two functions. Packages of others are imported only where a setting asks for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nvlm.config.schema import RunConfig
from nvlm.errors import TrainingError
from nvlm.files import json_line
from nvlm.train.run_folder import open_records, read_run_id


@dataclass(frozen=True)
class Sink:
    """`write(step, numbers)`, and `close()` at the run's end."""

    write: Callable[[int, dict[str, float]], None]
    close: Callable[[], None]


def open_json_lines(path: Path, resumed_step: int) -> tuple[Sink, str | None]:
    """A line per call in `path`, after those up to `resumed_step`; see `open_records`."""
    file, note = open_records(path, resumed_step)

    def write(step: int, numbers: dict[str, float]) -> None:
        file.write(json_line({"step": step, **numbers}))
        file.flush()

    return Sink(write, file.close), note


def open_trackers(config: RunConfig, resumed_step: int) -> list[Sink]:
    """The sinks that `log` names.

    Raises:
        TrainingError: one of them refuses the run.
    """
    sinks = []
    if config.log.tensorboard:
        sinks.append(_open_tensorboard(config, resumed_step))
    if config.log.wandb_project:
        sinks.append(_open_wandb(config))
    return sinks


def _open_tensorboard(config: RunConfig, resumed_step: int) -> Sink:
    from torch.utils.tensorboard import SummaryWriter

    folder = Path(config.run.dir) / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    return Sink(write, writer.close)


def _open_wandb(config: RunConfig) -> Sink:
    import wandb  # pyright: ignore[reportMissingImports] - an optional extra

    try:
        run = wandb.init(
            project=config.log.wandb_project,
            name=config.run.name,
            id=read_run_id(Path(config.run.dir)),
            resume="allow",
            config=config.model_dump(mode="json"),
        )
    except wandb.errors.Error as error:  # no connection, a wrong key, a full account
        raise TrainingError(
            f"log.wandb_project {config.log.wandb_project}: Weights & Biases says: "
            f"{error}; set WANDB_MODE=offline to train without it"
        ) from None
    return Sink(lambda step, numbers: run.log(numbers, step=step), run.finish)
