"""Checkpoint folders on disk: written beside and renamed when whole, read at any layout.

A checkpoint folder holds Megatron-core's distributed checkpoint (readable at any process layout),
`config.yaml` (the resolved configuration) and, when a training run wrote it, `progress.json` (step
and position in the data). A run keeps its own under `run.dir/checkpoints/step_XXXXXXXX` with a
`latest` link to the newest whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
import yaml

from nvlm.config.compose import save_config, validate
from nvlm.config.schema import RunConfig
from nvlm.errors import CheckpointError
from nvlm.parallel.groups import barrier

CONFIG_FILE = "config.yaml"
PROGRESS_FILE = "progress.json"
LATEST_LINK = "latest"
# Written by Megatron-core last, when every rank's tensors are on disk.
_WHOLE_MARK = "metadata.json"


def is_checkpoint(path: Path) -> bool:
    return (path / _WHOLE_MARK).is_file() and (path / CONFIG_FILE).is_file()


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the latest of a run folder.

    Raises:
        CheckpointError: there is no whole checkpoint there; the message says what was looked for.
    """
    path = Path(path)
    for candidate in (path, path / LATEST_LINK, path / "checkpoints" / LATEST_LINK):
        if is_checkpoint(candidate):
            return candidate.resolve()
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint folder")
    raise CheckpointError(
        f"{path}: not a checkpoint: expected {_WHOLE_MARK} and {CONFIG_FILE} in it, or in its "
        f"{LATEST_LINK} or checkpoints/{LATEST_LINK}"
    )


def read_config(checkpoint: Path) -> RunConfig:
    """The configuration that the checkpoint was written with."""
    path = checkpoint / CONFIG_FILE
    return validate(yaml.safe_load(path.read_text()), source=str(path))


def read_progress(checkpoint: Path) -> dict | None:
    """What a training run noted beside its weights; None for converted weights."""
    path = checkpoint / PROGRESS_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None


def write_checkpoint(
    target: str | Path,
    sharded_state_dict: dict,
    config: RunConfig,
    progress: dict | None = None,
    content_metadata: dict | None = None,
) -> Path:
    """Write a checkpoint folder; every rank calls this. Returns `target`.

    All is written to `TARGET.tmp` and renamed at the end, so a folder under its final name is
    always whole. What an interrupted write left behind is removed first; an existing `target`
    is replaced only once the new one is whole.
    """
    from megatron.core import dist_checkpointing

    target = Path(target)
    beside = target.with_name(target.name + ".tmp")

    def prepare() -> None:
        if target.exists() and not is_checkpoint(target):
            raise CheckpointError(f"{target}: exists and is not a checkpoint: remove it first")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    on_main_rank(prepare)
    dist_checkpointing.save(sharded_state_dict, str(beside), content_metadata=content_metadata)

    def finish() -> None:
        save_config(config, beside / CONFIG_FILE)
        if progress is not None:
            (beside / PROGRESS_FILE).write_text(json.dumps(progress))
        replaced = target.with_name(target.name + ".old")
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        beside.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    on_main_rank(finish)
    return target


def point_latest(checkpoint: Path) -> None:
    """Make `latest` beside `checkpoint` point to it, in one atomic step. One rank calls this."""
    link = checkpoint.parent / LATEST_LINK
    beside = checkpoint.parent / f"{LATEST_LINK}.tmp"
    beside.unlink(missing_ok=True)
    beside.symlink_to(checkpoint.name)
    os.replace(beside, link)


def read_sharded(checkpoint: Path, sharded_state_dict: dict) -> dict[str, Any]:
    """Fill `sharded_state_dict` from `checkpoint`, whatever layout wrote it; every rank calls this.

    Raises:
        CheckpointError: a tensor is missing there or has another shape.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException

    try:
        loaded = dist_checkpointing.load(sharded_state_dict, str(checkpoint))
    except (CheckpointingException, KeyError, RuntimeError) as error:
        message = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{checkpoint}: does not fit this run: {message}") from error
    return cast("dict[str, Any]", loaded)  # the other forms come with other validation modes


def on_main_rank(action: Callable[[], None]) -> None:
    """Run `action` on rank 0 while the others wait; its failure is raised on every rank."""
    failure: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            action()
        except Exception as error:
            failure = [f"{type(error).__name__}: {error}"]
            if dist.get_world_size() == 1:
                raise
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(failure, src=0)
        if failure[0] is not None:
            raise CheckpointError(failure[0])
    barrier()
