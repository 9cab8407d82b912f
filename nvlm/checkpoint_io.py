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
from pickle import UnpicklingError
from typing import Any, cast

import torch.distributed as dist

from nvlm.config.compose import save_config, validate
from nvlm.config.schema import RunConfig
from nvlm.config.yaml_file import read_yaml
from nvlm.errors import CheckpointError, ConfigError, NvlmError
from nvlm.safe_loading import DAMAGE, check_readable, data_only, describe_damage, one_line

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
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise CheckpointError(f"{error}; the checkpoint is damaged: use another one") from None
    return validate(values, source=str(path))


def read_progress(checkpoint: Path) -> dict | None:
    """What a training run noted beside its weights; None for converted weights."""
    path = checkpoint / PROGRESS_FILE
    if not path.is_file():
        return None
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {one_line(error)}") from None
    _check_progress(path, progress)
    return progress


def _check_progress(path: Path, progress: Any) -> None:
    expected = {"step": int, "counters": dict, "layout": dict, "data_state": dict}
    for key, kind in expected.items():
        value = progress.get(key) if isinstance(progress, dict) else None
        if type(value) is not kind:
            raise CheckpointError(
                f"{path}: is damaged: {key} is no {'number' if kind is int else 'mapping'}: use "
                "another checkpoint"
            )


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
        CheckpointError: a file is missing, damaged or names code, or a tensor is missing or has
            another shape; every rank raises it, and it says on which ranks that was found.
    """
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from torch.distributed.checkpoint.api import CheckpointException

    on_every_rank(lambda: check_readable(checkpoint))
    try:
        with data_only(checkpoint):
            loaded = dist_checkpointing.load(sharded_state_dict, str(checkpoint))
    except CheckpointException as failed:  # a BaseException, with what each failing rank raised
        ranks = sorted(failed.failures)
        error = failed.failures[ranks[0]][0]
        where = "" if len(ranks) == dist.get_world_size() else f" (on ranks {listed_ranks(ranks)})"
        raise CheckpointError(f"{_describe(checkpoint, error)}{where}") from error
    except (CheckpointingException, OSError, *DAMAGE) as error:
        raise CheckpointError(_describe(checkpoint, error)) from error
    return cast("dict[str, Any]", loaded)  # the other forms come with other validation modes


def _describe(checkpoint: Path, error: BaseException) -> str:
    if isinstance(error, NvlmError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or checkpoint}: cannot be read: {error.strerror or error}"
    if isinstance(error, (EOFError, UnpicklingError)) or "PytorchStreamReader" in str(error):
        return f"{checkpoint} {describe_damage(error)}"
    message = " ".join(str(error).split())[:500]
    return f"{checkpoint}: does not fit this run: {message or type(error).__name__}"


def listed_ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown


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
