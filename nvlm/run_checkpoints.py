"""Which checkpoint of a run folder is meant: the newest whole one, whatever `latest` says.

`latest` is for people and other programs. Copies lose it or turn it into a folder or a text file
(object storage, zip archives, Windows), and a kill may come before it is set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nvlm.checkpoint_files import find_damage
from nvlm.errors import CheckpointError

LATEST_LINK = "latest"
BEST_LINK = "best"
CHECKPOINTS_FOLDER = "checkpoints"
# What a checkpoint is called while it is written.
WRITING_NAME = ".{}.writing"
_STEP_NAME = re.compile(r"step_(\d+)")
# The second is how earlier versions called it.
_REPLACED_NAME = re.compile(r"\.(.+)\.replaced|(.+)\.old")


@dataclass
class Newest:
    """A run's newest whole checkpoint, and what the user should know about how it was found."""

    checkpoint: Path | None = None
    step: int = 0
    notes: list[str] = field(default_factory=list)


def find_newest(folder: Path, excluded: Mapping[Path, str] | None = None) -> Newest:
    """The newest whole checkpoint of `folder`, a run's `checkpoints`; None in it: there are none.

    Args:
        excluded: checkpoints that are known to be damaged, and how.

    Raises:
        CheckpointError: there are checkpoints and none is whole, or the folder cannot be read.
    """
    excluded = excluded or {}
    newest, damages = Newest(), []
    try:
        for step, checkpoint in list_steps(folder):
            damage = excluded.get(checkpoint) or find_damage(checkpoint)
            if damage is None:
                newest.checkpoint, newest.step = checkpoint, step
                break
            damages.append(f"{checkpoint} is damaged: {damage}")
        link_note = _look_at_latest(folder, newest.checkpoint)
    except OSError as error:
        if folder.is_symlink() and not folder.exists():
            target = os.readlink(folder)
            raise CheckpointError(
                f"{folder}: a link to {target}, which is not there: is its disk mounted?"
            ) from None
        path = error.filename or folder
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if newest.checkpoint is None:
        if damages:
            raise CheckpointError(
                f"{folder}: no checkpoint there is whole: {'; '.join(damages)}; put a whole copy "
                "back, or give another run.dir. Nothing was changed"
            )
        if os.path.lexists(folder / LATEST_LINK):
            raise CheckpointError(
                f"{folder}: has {LATEST_LINK}, and not the step_* folder that it stood for: put it "
                "back, or give another run.dir. Nothing was changed"
            )
        return newest
    newest.notes = [f"{damage}; {newest.checkpoint.name} is used" for damage in damages]
    if link_note and not damages:
        newest.notes.append(f"{folder / LATEST_LINK} {link_note}: {newest.checkpoint.name}, ")
        newest.notes[-1] += "the newest whole one, is used"
    return newest


def list_steps(folder: Path) -> list[tuple[int, Path]]:
    """(step, checkpoint) of all that is in `folder`, the newest first, whole or not.

    Raises:
        OSError: the folder is there and cannot be listed.
    """
    if not os.path.lexists(folder):
        return []
    names = sorted(os.listdir(folder))
    steps = {name: int(match[1]) for name in names if (match := _STEP_NAME.fullmatch(name))}
    found = {name: (step, folder / name) for name, step in steps.items()}
    for name in names:
        # A kill between the two renames of a replacement leaves the earlier folder beside.
        original = replaced_name(name)
        if original and (match := _STEP_NAME.fullmatch(original)) and original not in found:
            found[original] = (int(match[1]), folder / name)
    latest = folder / LATEST_LINK
    if not found and latest.is_dir():  # all that was copied
        found[LATEST_LINK] = (0, latest)
    return sorted(found.values(), key=lambda entry: (entry[0], entry[1].name), reverse=True)


def replaced_name(name: str) -> str | None:
    """The final name of a folder that a replacement had renamed; None: it is not such a folder."""
    match = _REPLACED_NAME.fullmatch(name)
    return match and (match[1] or match[2])


def _look_at_latest(folder: Path, newest: Path | None) -> str | None:
    """How `latest` differs from a link to `newest`; None: it does not."""
    link = folder / LATEST_LINK
    if newest is None or newest == link:
        return None
    if not os.path.lexists(link):
        return "is missing"
    if not link.is_symlink():
        return "is a folder, not a link" if link.is_dir() else "is a file, not a link"
    if not link.exists():
        return f"points to {os.readlink(link)}, which is not there"
    return None if link.resolve() == newest.resolve() else f"points to {os.readlink(link)}"
