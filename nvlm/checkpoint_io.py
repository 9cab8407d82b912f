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
from nvlm.errors import CheckpointError, NvlmError

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

    Raises:
        CheckpointError: see `replace_checkpoint`.
    """
    from megatron.core import dist_checkpointing

    def write(folder: Path) -> None:
        dist_checkpointing.save(sharded_state_dict, str(folder), content_metadata=content_metadata)

    return replace_checkpoint(target, write, config, progress)


def replace_checkpoint(
    target: str | Path,
    write: Callable[[Path], None],
    config: RunConfig,
    progress: dict | None = None,
) -> Path:
    """A checkpoint folder whose tensors `write(FOLDER)` writes; every rank calls this.

    Returns `target`, which is whole or not there: see `replace_folder`.

    Raises:
        CheckpointError: `target` is something else, or cannot be written.
    """
    target = Path(target)

    def write_all(folder: Path) -> None:
        write(folder)

        def describe() -> None:
            save_config(config, folder / CONFIG_FILE)
            if progress is not None:
                (folder / PROGRESS_FILE).write_text(json.dumps(progress, separators=(",", ":")))

        on_main_rank(describe)

    def check() -> None:
        if target.exists() and not is_checkpoint(target):
            raise CheckpointError(f"{target}: exists and is not a checkpoint: remove it first")

    on_main_rank(check)
    replace_folder(target, write_all)
    return target


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder beside `target` by `write(FOLDER)` and rename it; every rank calls this.

    So a folder under its final name is always whole: what an interrupted write left behind is
    removed by the next one, and an existing `target` only once the new one is whole.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    beside = target.with_name(target.name + ".tmp")
    replaced = target.with_name(target.name + ".old")

    def prepare() -> None:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def finish() -> None:
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        beside.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    try:
        on_main_rank(prepare)
        write(beside)
        on_main_rank(finish)
    except BaseException as error:
        if dist.get_rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
        if isinstance(error, OSError):
            raise CheckpointError(
                f"{target}: cannot be written: {error.strerror or error}; nothing was left there"
            ) from error
        raise


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
    on_every_rank(action if dist.get_rank() == 0 else lambda: None)


def on_every_rank(action: Callable[[], None]) -> None:
    """Run `action` on each rank; returns when all are done.

    A failure on any rank is raised on all of them. One that is not meant for users arrives on the
    other ranks as a CheckpointError that names the process.
    """
    failure: Exception | None = None
    try:
        action()
    except Exception as error:
        failure = error
    if dist.get_world_size() > 1:
        sent = failure
        if failure is not None and not isinstance(failure, (NvlmError, OSError)):
            sent = CheckpointError(
                f"process {dist.get_rank()}: {type(failure).__name__}: {failure}"
            )
        failures: list[Exception | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, sent)
        failure = failure or next(filter(None, failures), None)
    if failure is not None:
        raise failure
