"""Checkpoint folders on disk: written beside and renamed when whole, read at any layout.

A checkpoint folder holds Megatron-core's distributed checkpoint (readable at any process layout),
`config.yaml` (the resolved configuration), `files.json` (each file's size and checksum) and, when a
training run wrote it, `progress.json` (step and position in the data). A run keeps its own under
`run.dir/checkpoints/step_XXXXXXXX` with a `latest` link to the newest.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch.distributed as dist

from nvlm.checkpoint_files import (
    CONFIG_FILE,
    MANIFEST_FILE,
    PROGRESS_FILE,
    changed,
    find_damage,
    has_checksums,
    write_manifest,
)
from nvlm.checkpoint_files import read_config as read_config
from nvlm.checkpoint_files import read_progress as read_progress
from nvlm.config.compose import save_config
from nvlm.config.schema import RunConfig
from nvlm.disk_space import check_space, with_need
from nvlm.errors import CheckpointError, NvlmError
from nvlm.failures import explain
from nvlm.files import free_name
from nvlm.megatron.saves_of_a_group import save_over
from nvlm.parallel.agreement import MAIN_CHANNEL, Channel, meet
from nvlm.parallel.groups import is_main_process
from nvlm.printing import say
from nvlm.run_checkpoints import (
    CHECKPOINTS_FOLDER,
    LATEST_LINK,
    WRITING_NAME,
    find_newest,
    replaced_name,
)
from nvlm.safe_loading import DAMAGE, FORMAT_FILE, check_readable, data_only, describe_damage


def is_checkpoint(path: Path) -> bool:
    return (path / FORMAT_FILE).is_file() and (path / CONFIG_FILE).is_file()


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder meant by `path`: itself, or the newest whole one of a run folder.

    What is used in place of a damaged one, or against what `latest` says, is reported on standard
    error. Contents are not compared: see `check_contents`.

    Raises:
        CheckpointError: there is no whole checkpoint there; the message says what was looked for.
    """
    path = Path(path)
    if path.is_file() and path.name != LATEST_LINK:
        raise CheckpointError(f"{path}: a file: expected a checkpoint or run folder")
    try:
        is_link = path.name == LATEST_LINK
        for folder in [path.parent] if is_link else [path / CHECKPOINTS_FOLDER, path]:
            newest = find_newest(folder)
            if newest.checkpoint:
                for note in newest.notes:
                    _say(note)
                return newest.checkpoint.resolve()
        found = path if os.path.lexists(path) else _before_replacement(path)
        if found is None:
            raise CheckpointError(f"{path}: no such checkpoint folder")
        if not found.is_dir() or not is_checkpoint(found):
            stages = sorted(run.parent.name for run in path.glob(f"*/{CHECKPOINTS_FOLDER}"))
            there_are = f"; it has the runs {', '.join(stages[:8])}: name one" if stages else ""
            raise CheckpointError(
                f"{path}: not a checkpoint: expected {FORMAT_FILE} and {CONFIG_FILE} in it, or "
                f"step_* folders in it or in its {CHECKPOINTS_FOLDER}{there_are}"
            )
        damage = find_damage(found)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if damage:
        raise CheckpointError(f"{path} cannot be used: {damage}")
    return found.resolve()


def check_contents(checkpoint: Path) -> None:
    """Compare every file with its checksum; every rank calls this and reads a share.

    Raises:
        CheckpointError: a file is missing or has changed; the same on every rank.
    """
    damage = changed(checkpoint)
    if damage:
        raise CheckpointError(f"{checkpoint} cannot be used: {damage}")
    if not has_checksums(checkpoint):
        _say(f"{checkpoint} has no {MANIFEST_FILE}: its files cannot be compared with checksums")


def _before_replacement(path: Path) -> Path | None:
    """What `path` was, where a kill came between the two renames of its replacement."""
    try:
        names = sorted(os.listdir(path.parent))
    except FileNotFoundError:
        return None
    for name in names:
        beside = path.with_name(name)
        if replaced_name(name) == path.name and is_checkpoint(beside):
            _say(f"{path} is missing: {beside} is used, which was to be replaced")
            return beside
    return None


def _say(line: str) -> None:
    if is_main_process():
        say(line, sys.stderr)


def write_checkpoint(
    target: str | Path,
    sharded_state_dict: dict,
    config: RunConfig,
    progress: dict | None = None,
    content_metadata: dict | None = None,
    channel: Channel = MAIN_CHANNEL,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write a checkpoint folder; every rank calls this. Returns `target`.

    Args:
        channel: for a thread beside the one that trains, one of its own.
        check: called on the main rank once all is written; raises where it is not to count.

    Raises:
        CheckpointError: see `replace_checkpoint`; or the disk has less space than it takes.
    """
    from megatron.core import dist_checkpointing

    from nvlm.megatron.in_process_writes import in_process_writer, written_bytes

    def wait_for_others() -> None:
        meet(f"{target}: writing it", channel.name)

    def write(folder: Path) -> None:
        if channel.group is None:
            dist_checkpointing.save(
                sharded_state_dict,
                str(folder),
                in_process_writer(wait_for_others),
                content_metadata=content_metadata,
            )
            on_main_rank(check, channel)
            return

        def gather(value: Any) -> list:
            return channel.gather(value, f"{target}: comparing what ranks write")

        save_over(
            channel.group, gather, sharded_state_dict, folder, wait_for_others, content_metadata
        )
        on_main_rank(check, channel)

    num_bytes = sum(channel.gather(written_bytes(sharded_state_dict), f"{target}: counting bytes"))
    on_main_rank(lambda: check_space(Path(target), num_bytes), channel)
    try:
        return replace_checkpoint(target, write, config, progress, channel)
    except CheckpointError as error:
        raise with_need(error, num_bytes) from error.__cause__


def replace_checkpoint(
    target: str | Path,
    write: Callable[[Path], None],
    config: RunConfig,
    progress: dict | None = None,
    channel: Channel = MAIN_CHANNEL,
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

        on_main_rank(describe, channel)
        write_manifest(folder, channel)

    def check() -> None:
        if not os.path.lexists(target):
            return
        if not is_checkpoint(target):
            raise CheckpointError(f"{target}: exists and is not a checkpoint: remove it first")
        if (target / PROGRESS_FILE).exists():
            raise CheckpointError(
                f"{target}: was written by a training run, which would lose it: name another folder"
            )

    on_main_rank(check, channel)
    replace_folder(target, write_all, channel)
    return target


def replace_folder(
    target: Path, write: Callable[[Path], None], channel: Channel = MAIN_CHANNEL
) -> None:
    """Fill a folder beside `target` by `write(FOLDER)` and rename it; every rank calls this.

    So a folder under its final name is always whole: what an interrupted write left behind is
    removed by the next one, and an existing `target` only once the new one is whole. Where a kill
    came between, so that only the earlier one is there, it gets its name back.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    # Names that nobody else gives to a folder: they are removed.
    beside = target.with_name(WRITING_NAME.format(target.name))
    replaced = target.with_name(f".{target.name}.replaced")

    def prepare() -> None:
        if not target.exists() and replaced.exists():
            replaced.rename(target)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)

    def finish() -> None:
        shutil.rmtree(replaced, ignore_errors=True)
        if target.exists():
            target.rename(replaced)
        beside.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)

    try:
        on_main_rank(prepare, channel)
        write(beside)
        on_main_rank(finish, channel)
    except BaseException as error:
        if dist.get_rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
            if not target.exists() and replaced.exists():
                replaced.rename(target)
        cause = None if isinstance(error, NvlmError) else explain(error)
        if isinstance(error, OSError):
            cause = error.strerror or str(error)
        if cause is not None:
            raise CheckpointError(
                f"{target}: cannot be written: {cause}; nothing was left there"
            ) from error
        raise


def move_aside(path: Path, why: str) -> Path:
    """Rename `path`, which is in the way, to a name of its own that says why; returns it."""
    aside = free_name(path.parent, f"{path.name}.{why}")
    path.rename(aside)
    return aside


def point(checkpoint: Path, name: str) -> None:
    """Make the link `name` beside `checkpoint` point to it, in one atomic step. One rank does it.

    A file with the name where the disk has no links; a folder in its place is moved aside.
    """
    link = checkpoint.parent / name
    beside = checkpoint.parent / f"{name}.tmp"
    beside.unlink(missing_ok=True)
    try:
        beside.symlink_to(checkpoint.name)
    except OSError:
        beside.write_text(f"{checkpoint.name}\n")
    if link.is_dir() and not link.is_symlink():
        _say(f"{link} is a folder: moved to {move_aside(link, 'copy').name}")
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


def on_main_rank(action: Callable[[], None], channel: Channel = MAIN_CHANNEL) -> None:
    """Run `action` on rank 0 while the others wait; its failure is raised on every rank."""
    on_every_rank(action if dist.get_rank() == 0 else lambda: None, channel)


def on_every_rank(action: Callable[[], None], channel: Channel = MAIN_CHANNEL) -> None:
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
        failures = channel.gather(sent, "reading or writing files")
        failure = failure or next(filter(None, failures), None)
    if failure is not None:
        raise failure
