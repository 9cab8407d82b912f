"""Where a run's numbers go: `metrics.jsonl`, TensorBoard, Weights & Biases and the console."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from nvlm import platform
from nvlm.batch import SkippedSample
from nvlm.config.schema import RunConfig
from nvlm.data.loading.training_data import TrainingData
from nvlm.errors import TrainingError
from nvlm.files import json_line, read_json_lines
from nvlm.printing import printable
from nvlm.tables import print_table
from nvlm.train.freezing import ModuleRow
from nvlm.train.run_folder import (
    METRICS_FILE,
    SKIPPED_FILE,
    open_records,
    open_run_folder,
    read_run_id,
)
from nvlm.train.skips import count_skipped
from nvlm.train.throughput import device_card, rates
from nvlm.train.training import StepTaken, Training

# Of a step; the file has all.
_NUM_SKIPPED_PRINTED = 10
# Ranks whose work differs by less than this wait for each other hardly at all.
_WORTH_SAYING = 1.05


class MetricsWriter:
    """Writes one record per step. Only the run's main process makes one.

    On resume, records of steps after `resumed_step` are moved: see `open_records`.
    """

    def __init__(self, config: RunConfig, resumed_step: int, console: Console):
        folder = Path(config.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._config = config
        self._console = console
        self._metrics, *notes = open_records(folder / METRICS_FILE, resumed_step)
        self._skipped, *more_notes = open_records(folder / SKIPPED_FILE, resumed_step)
        for note in filter(None, [*notes, *more_notes]):
            console.print(note, markup=False, highlight=False)
        self._named = _read_named(folder / SKIPPED_FILE)
        self._tensorboard = None
        if config.log.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(folder / "tensorboard"), purge_step=resumed_step + 1
            )
        self._wandb = None
        if config.log.wandb_project:
            import wandb  # pyright: ignore[reportMissingImports] - an optional extra

            try:
                self._wandb = wandb.init(
                    project=config.log.wandb_project,
                    name=config.run.name,
                    id=read_run_id(folder),
                    resume="allow",
                    config=config.model_dump(mode="json"),
                )
            except wandb.errors.Error as error:  # no connection, a wrong key, a full account
                raise TrainingError(
                    f"log.wandb_project {config.log.wandb_project}: Weights & Biases says: "
                    f"{error}; set WANDB_MODE=offline to train without it"
                ) from None

    def write_step(
        self, training: Training, taken: StepTaken, seconds: float, data_seconds: float
    ) -> None:
        """Record the step that `training` has just taken, in so many seconds, waiting included."""
        self.write(
            training.step, step_record(training, taken, seconds, data_seconds), taken.skipped
        )

    def write(self, step: int, record: dict[str, float], skipped: list[SkippedSample]) -> None:
        self._metrics.write(json_line({"step": step, **record}))
        self._metrics.flush()
        self.name_skipped(step, skipped)
        if self._tensorboard:
            for name, value in record.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(record, step=step)
        if step % self._config.log.every == 0 or step == self._config.train.steps:
            self._console.print(_step_line(step, self._config.train.steps, record), markup=False)

    def name_skipped(self, step: int, skipped: list[SkippedSample]) -> None:
        """Add samples to `skipped.jsonl`: each once, though every pass over its source skips it."""
        new = [
            sample for sample in dict.fromkeys(skipped) if _name(asdict(sample)) not in self._named
        ]
        for sample in new:
            self._named.add(_name(asdict(sample)))
            self._skipped.write(json_line({"step": step, **asdict(sample)}))
        self._skipped.flush()
        for sample in new[:_NUM_SKIPPED_PRINTED]:
            self._console.print(
                printable(
                    f"skipped sample {sample.key} of {sample.shard}: {sample.reason}: "
                    f"{sample.detail}"
                ),
                style="yellow",
                highlight=False,
                markup=False,
            )
        if len(new) > _NUM_SKIPPED_PRINTED:
            self._console.print(
                f"and {len(new) - _NUM_SKIPPED_PRINTED:,} more skipped samples: {SKIPPED_FILE}",
                style="yellow",
                highlight=False,
            )

    def close(self) -> None:
        self._metrics.close()
        self._skipped.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


@contextmanager
def open_log(
    training: Training, data: TrainingData | None, console: Console
) -> Iterator[MetricsWriter | None]:
    """The writer of the run's numbers, on its main process; names what the index rejects."""
    if not training.parallel.is_main:
        yield None
        return
    assert data is not None
    for note in open_run_folder(training.config, training.step):
        console.print(note, markup=False, highlight=False)
    writer = MetricsWriter(training.config, training.step, console)
    try:
        if training.step == 0 or data.changes:
            writer.name_skipped(training.step, data.rejected())
        yield writer
    finally:
        writer.close()


def step_record(
    training: Training, taken: StepTaken, seconds: float, data_seconds: float
) -> dict[str, float]:
    """A line of `metrics.jsonl`, but for the number of the step."""
    config, result = training.config, taken.result
    num_positions = config.train.global_batch_size * config.stage.sequence_length
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": taken.learning_rate,
        "tokens": result.num_trained_tokens,
        "tiles": result.num_tiles,
        "samples": result.num_samples,
        "skipped": len(taken.skipped),
        "skipped_total": training.counters.num_skipped,
        "padding": 1 - result.num_tokens / num_positions,
        "seconds": seconds,
        "data_seconds": data_seconds,
        "forward_backward_seconds": result.forward_backward_seconds,
        "optimizer_seconds": result.optimizer_seconds,
        **rates(
            taken.work,
            result.num_tokens,
            result.num_tiles,
            training.parallel.world_size,
            seconds,
            device_card(),
        ),
        "peak_memory_bytes": platform.current().peak_memory_bytes(),
        **{f"skipped/{name}": number for name, number in count_skipped(taken.skipped).items()},
        **{f"repaired/{name}": number for name, number in taken.repaired.items()},
        **taken.shortened,
    }


def _name(skipped: dict) -> int:
    """A short stand-in for the sample: a run may skip millions."""
    return hash((skipped["source"], skipped["shard"], skipped["key"], skipped["reason"]))


def _read_named(path: Path) -> set[int]:
    return set(map(_name, read_json_lines(path)))


def _step_line(step: int, steps: int, record: dict[str, float]) -> str:
    return (
        f"step {step:>{len(str(steps))}}/{steps}  loss {record['loss']:.4f}  "
        f"grad {record['grad_norm']:.3f}  lr {record['lr']:.2e}  "
        f"tokens {int(record['tokens']):,}  tiles {int(record['tiles'])}  "
        f"padding {record['padding']:.0%}  {_speed(record)}  "
        f"{record['seconds']:.2f} s (data {record['data_seconds']:.2f} s)"
    )


def _speed(record: dict[str, float]) -> str:
    parts = [f"{record['tokens_per_second']:,.0f} tokens/s"]
    parts.append(f"{record['tflops_per_second']:.3g} TFLOP/s")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record["rank_imbalance"] >= _WORTH_SAYING:
        parts.append(f"slowest rank +{record['rank_imbalance'] - 1:.0%}")
    return "  ".join(parts)


def print_module_table(rows: list[ModuleRow], config: RunConfig, console: Console) -> None:
    """What trains and what does not, before the first step."""
    cells, styles = [], []
    for row in rows:
        trains = row.num_trainable > 0
        lr = config.train.optimizer.lr * row.multiplier.lr
        weight_decay = config.train.optimizer.weight_decay * row.multiplier.weight_decay
        cells.append(
            [
                row.name,
                f"{row.num_parameters:,}",
                f"{row.num_trainable:,}" if trains else "frozen",
                f"{lr:.2e}" if trains else "-",
                f"{weight_decay:g}" if trains else "-",
            ]
        )
        styles.append(None if trains else "dim")
    total = [sum(row.num_parameters for row in rows), sum(row.num_trainable for row in rows)]
    cells.append(["total", *(f"{number:,}" for number in total), "", ""])
    print_table(
        console,
        f"{config.run.name}: stage {config.stage.name}",
        ["module", "parameters", "trainable", "learning\nrate", "weight\ndecay"],
        cells,
        styles=[*styles, "bold"],
    )
    console.print("Biases, norms and other vectors have no weight decay.", style="italic dim")
