"""What a step leaves behind whose numbers were not finite: `RUN/replay/step_XXXXXXXX.json`.

The file says which samples the step had (the position in the data before it), with which settings,
and beside it lie the weights of that moment, as a checkpoint without optimizer state: `nvlm train
--replay FILE` takes the step again from them. The file is JSON, and a run reads none of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from nvlm.batch import StepBatch
from nvlm.checkpoint_io import on_main_rank, write_checkpoint
from nvlm.checkpoint_shares import sharded_tensors, share_writing
from nvlm.config.schema import RunConfig
from nvlm.errors import NvlmError, TrainingError
from nvlm.files import write_text
from nvlm.model.nvlm_d import NVLMD
from nvlm.parallel.groups import Parallel

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

REPLAY_FOLDER = "replay"


@dataclass(frozen=True)
class Failed:
    """A step that failed, as its file has it: JSON values only."""

    step: int
    message: str
    config: dict
    # Position in the data before the step; None: it was the first.
    data_state: dict | None
    # Keys of each micro-batch, in the order of the global batch.
    samples: list[list[str]]
    layout: str
    # Folder beside the file with the weights of that moment; None: they could not be written.
    weights: str | None
    # The run's newest checkpoint then, and its step; None and 0: there was none.
    checkpoint: str | None
    checkpoint_step: int


def keep_for_replay(
    config: RunConfig,
    chunks: list[NVLMD],
    batch: StepBatch,
    parallel: Parallel,
    step: int,
    message: str,
    data_state: dict | None,
    last_saved: tuple[str | None, int],
) -> str:
    """Write the file of a failed step and its weights; every rank calls this.

    Args:
        chunks: bare, with the weights that the step was taken with.
        batch: this data rank's share of the step.
        last_saved: the newest checkpoint and its step.

    Returns:
        a line that says what was written, or why nothing could be.
    """
    folder = Path(config.run.dir) / REPLAY_FOLDER
    path = folder / f"step_{step:08d}.json"
    samples = _samples(batch, parallel)
    weights, problem = folder / path.stem, ""
    try:
        on_main_rank(lambda: folder.mkdir(parents=True, exist_ok=True))
        _write_weights(weights, config, chunks, parallel)
    except (NvlmError, OSError) as error:
        problem = f" (not with the weights of that moment: {error})"
    failed = Failed(
        step=step,
        message=message,
        config=config.model_dump(mode="json"),
        data_state=data_state,
        samples=samples,
        layout=parallel.sizes(),
        weights=None if problem else weights.name,
        checkpoint=last_saved[0],
        checkpoint_step=last_saved[1],
    )
    try:
        on_main_rank(lambda: write_text(path, json.dumps(asdict(failed), indent=1) + "\n"))
    except (NvlmError, OSError) as error:
        return f"it cannot be taken again: {path} cannot be written: {error}"
    return f"take the step again on one process: nvlm train --replay {path}{problem}"


def read_failed(path: Path) -> Failed:
    """The step that `keep_for_replay` wrote.

    Raises:
        TrainingError: it cannot be read, or is no such file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Failed(**{field.name: values[field.name] for field in fields(Failed)})
    except OSError as error:
        raise TrainingError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise TrainingError(
            f"{path}: not the file of a failed step, as training writes it to RUN/{REPLAY_FOLDER}"
        ) from None


def _samples(batch: StepBatch, parallel: Parallel) -> list[list[str]]:
    own = [micro_batch.sample_keys for micro_batch in batch.micro_batches]
    gathered: list = [None] * parallel.world_size
    dist.all_gather_object(gathered, (parallel.data_rank, own))
    of_rank = dict(gathered)
    return [keys for rank in sorted(of_rank) for keys in of_rank[rank]]


def _write_weights(
    target: Path, config: RunConfig, chunks: list[NVLMD], parallel: Parallel
) -> None:
    tensors: list[ShardedTensor] = [
        tensor for chunk in chunks for tensor in sharded_tensors(chunk.sharded_state_dict())
    ]
    share_writing(tensors, parallel.alike)
    numbered = {str(number): tensor for number, tensor in enumerate(tensors)}
    write_checkpoint(target, {"weights": numbered}, config)
