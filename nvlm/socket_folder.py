"""The folder of the sockets over which a process and its workers hand each other shared memory.

Python makes one for each process, and removes it at an orderly end only. This one belongs to a
process and its workers together; the last of them that is not killed removes it, and where all were
killed at once the next process that starts workers does.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from multiprocessing import process
from pathlib import Path

from nvlm.ending import at_end

_PREFIX = "nvlm-"
_SPACE_FILE = "space"


def make_socket_folder() -> Path:
    """Make the folder of this process, which the workers that it forks inherit; once is enough.

    Removes those of processes that were killed, as far as they were started on this machine.
    """
    config = getattr(process.current_process(), "_config")  # noqa: B009 - where Python keeps it
    if "tempdir" in config:
        return Path(config["tempdir"])
    temporary = Path(tempfile.gettempdir())
    for folder in temporary.glob(f"{_PREFIX}*"):
        if _is_of_the_dead(folder):
            shutil.rmtree(folder, ignore_errors=True)
    # Short: the names of sockets have 107 characters at most.
    folder = temporary / f"{_PREFIX}{os.getpid():x}-{_birth(os.getpid()):x}"
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / _SPACE_FILE).write_text(_space())
    config["tempdir"] = str(folder)
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a fork, which may inherit this
            shutil.rmtree(folder, ignore_errors=True)

    at_end(remove)
    atexit.register(remove)
    return folder


def remove_socket_folder(parent: int) -> None:
    """To be called by a worker whose parent, of this number, is gone, before it ends too.

    A folder that the parent was given by its own, which goes on, is left to that.
    """
    folder = getattr(process.current_process(), "_config").get("tempdir")  # noqa: B009
    if folder is not None and Path(folder).name.startswith(f"{_PREFIX}{parent:x}-"):
        shutil.rmtree(folder, ignore_errors=True)


def _is_of_the_dead(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        number, birth = (int(part, 16) for part in folder.name.removeprefix(_PREFIX).split("-"))
        if (folder / _SPACE_FILE).read_text() != _space():
            return False
        try:
            return _birth(number) != birth
        except OSError:
            return True
    return False


def _birth(number: int) -> int:
    """When a process was started, by the kernel's count; raises OSError where it is gone."""
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19])


def _space() -> str:
    """The kernel and the space in which processes have their numbers."""
    kernel = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{kernel} {os.readlink('/proc/self/ns/pid')}"
