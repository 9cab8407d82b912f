"""Which of a run's checkpoints stay, and what is left of writes that never ended."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from nvlm.checkpoint_files import find_damage, read_progress
from nvlm.config.run_sections import CheckpointConfig
from nvlm.run_checkpoints import BEST_LINK, WRITING_NAME, list_steps

_REMOVING_NAME = ".{}.removing"


def remove_older(folder: Path, newest: Path, wanted: CheckpointConfig, run_id: str | None) -> None:
    """Remove this run's whole checkpoints but for the `keep` newest; damaged ones do not count.

    Never removed: portable ones, those of `keep_every`, and what `best` points to.
    """
    assert wanted.keep is not None
    _remove_all(folder.glob(_REMOVING_NAME.format("*")))
    best = folder / BEST_LINK
    own = []
    for step, checkpoint in list_steps(folder):
        with suppress(OSError):  # what cannot be looked at is left alone
            if find_damage(checkpoint) is None:
                progress = read_progress(checkpoint)
                if progress is not None and progress.get("run") in (run_id, None):
                    is_kept = progress.get("kind") == "portable" or (
                        wanted.keep_every is not None and step % wanted.keep_every == 0
                    )
                    own.append((checkpoint, is_kept))
    if newest not in [checkpoint for checkpoint, _ in own]:
        return
    for checkpoint, is_kept in own[wanted.keep :]:
        if is_kept or checkpoint == newest or checkpoint.resolve() == best.resolve():
            continue
        # A kill may come in between: half a checkpoint never has the name of one.
        removing = checkpoint.with_name(_REMOVING_NAME.format(checkpoint.name))
        checkpoint.rename(removing)
        _remove_all([removing])


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what killed writes and removals of a run left in `folder`; returns their names.

    To be called by the run that owns the folder, before it writes there.
    """
    left = [
        path
        for name in (WRITING_NAME, _REMOVING_NAME)
        for path in sorted(folder.glob(name.format("step_*")))
    ]
    _remove_all(left)
    return [path.name for path in left]


def _remove_all(paths) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
