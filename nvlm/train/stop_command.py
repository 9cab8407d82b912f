"""`nvlm stop`: asks the run in a folder to save and end, from any host that has the folder.

It needs no torch where there is anything to find, so that it answers at once.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from nvlm.errors import TrainingError
from nvlm.files import write_text
from nvlm.printing import say
from nvlm.train.events import EVENTS_FILE, last_event
from nvlm.train.ownership import OWNERS_FOLDER, STOP_SUFFIX, Owner, find_owner

_SECONDS_BETWEEN_LOOKS = 0.5
# Events with which a run has ended as it should.
_ENDS = ("stop", "end")


def stop_run(folder: Path, wait: bool) -> None:
    """Ask the run in `folder`, or in that of one of its stages, to stop; say what was found there.

    Args:
        wait: until it has ended.

    Raises:
        TrainingError: this is no run's folder, it cannot be written to, or the run that was waited
            for has ended, but neither as asked nor with its last step.
    """
    places = _run_folders(folder)
    # The stages of a file are owned together, and one of them is at work.
    living = {
        place: owner
        for place in places
        if (owner := find_owner(place)) is not None and owner.gone is None
    }
    for place, owner in living.items():
        _ask(place, owner)
    if living and wait:
        _wait(living)
    for place in places if not living else ():
        say(f"{place}: nothing runs here{_why_not(place)}; {_last_known(place)}")


def _run_folders(folder: Path) -> list[Path]:
    """`folder` and those of its stages that are folders of runs.

    Raises:
        TrainingError: there is none.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise TrainingError(f"{folder}: {what}: give the run.dir of a run")
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise TrainingError(f"{folder}: {error.strerror}") from None
    places = (folder, *below)
    found = [p for p in places if (p / OWNERS_FOLDER).exists() or (p / EVENTS_FILE).exists()]
    if not found:
        from nvlm.run_checkpoints import CHECKPOINTS_FOLDER

        # Of an earlier version.
        found = [place for place in places if (place / CHECKPOINTS_FOLDER).exists()]
    if not found:
        raise TrainingError(f"{folder}: no run was here: give the run.dir of a run")
    return found


def _ask(place: Path, owner: Owner) -> None:
    file = owner.path.with_suffix(STOP_SUFFIX)
    alive = f", last sign of life {owner.sign_of_life} ago" if owner.sign_of_life else ""
    if file.exists():
        say(f"{place}: {owner.who}{alive}: was asked before; it saves and ends after its step")
        return
    request = {"host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
    try:
        write_text(file, json.dumps(request))
    except FileNotFoundError:
        pass  # it has ended, and its folder of owners with it
    except OSError as error:
        raise TrainingError(f"{place}: cannot ask: {file}: {error.strerror}") from None
    if not owner.path.exists():
        for leave in (lambda: file.unlink(missing_ok=True), file.parent.rmdir):
            with suppress(OSError):
                leave()
        say(f"{place}: the run, {owner.who}, has just ended; {_last_known(place)}")
        return
    say(f"{place}: asked {owner.who}{alive}: it saves and ends after its step")


def _wait(living: dict[Path, Owner]) -> None:
    started = time.time()
    for place, owner in living.items():
        while owner.path.exists():
            now = find_owner(place)
            if now is not None and now.path == owner.path and now.gone is not None:
                raise TrainingError(f"{place}: {now.gone}, and did not stop as asked")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    events = {place: event for place in living if (event := last_event(place)) is not None}
    place = max(events, key=lambda place: events[place].time, default=next(iter(living)))
    last = events.get(place)
    # Clocks of two hosts differ.
    if last is None or last.kind not in _ENDS or last.time < started - 600:
        raise TrainingError(
            f"{place}: the run has ended, but not as asked; {_last_known(place)}; see its log"
        )
    say(f"{place}: {last.text}")


def _why_not(place: Path) -> str:
    owner = find_owner(place)
    return f": {owner.gone}" if owner is not None else ""


def _last_known(place: Path) -> str:
    """The run's last event, or its newest checkpoint, or that there is neither."""
    last = last_event(place)
    if last is not None:
        return f"the last that is known: {last.text}"
    from nvlm.run_checkpoints import CHECKPOINTS_FOLDER, list_steps

    steps = list_steps(place / CHECKPOINTS_FOLDER)
    if steps:
        return f"its newest checkpoint is {steps[0][1].name}"
    return "no step of it was saved"
