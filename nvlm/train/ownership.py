"""One run folder, one run: who trains in a folder, and whether he still lives.

A run writes `run.dir/.owners/NUMBER.json`, which names its processes. The highest number owns the
folder; whoever creates the next one, which only one can, takes the folder over. While a run lives,
its hosts renew the file's time. So nothing hangs on locks of the file system, which shared disks
have or not, nor on clocks of other hosts. `NUMBER.stop` beside it asks that run to stop.

A process on this host is looked up by its number and birth. One that cannot be looked up (on
another host, in another container) is taken for gone after `STALE_SECONDS` without a sign of life.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from nvlm.ending import released_at_end
from nvlm.errors import TrainingError
from nvlm.files import write_text
from nvlm.launch import has_torchruns_store, launched, meeting_place
from nvlm.printing import say

OWNERS_FOLDER = ".owners"
STOP_SUFFIX = ".stop"
STALE_SECONDS = 120.0
_HEARTBEAT_SECONDS = 10.0
_JOB = "TORCHELASTIC_RUN_ID"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
# Name, restarts as torchrun of the main process's machine counts them, and the place of its store.
Job = tuple[str, int, str]


@dataclass(frozen=True)
class Member:
    """A process of a run."""

    host: str
    place: str  # the running kernel and its space of process numbers
    process: int
    birth: str  # tells it from later processes of its number
    started: float  # seconds since the epoch

    @classmethod
    def this(cls) -> Member:
        import psutil

        process = psutil.Process()
        birth = _birth(process)
        return cls(socket.gethostname(), _place(), process.pid, birth, process.create_time())

    def is_alive(self) -> bool | None:
        """None: it cannot be told from here."""
        import psutil

        if self.place != _place():
            return None
        try:
            process = psutil.Process(self.process)
            return _birth(process) == self.birth and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class Ownership:
    """A folder that this process's run owns. Use `own_run_folder`."""

    def __init__(self, path: Path, job: Job | None):
        self.path = path
        self._job = job
        self._ended = threading.Event()

    @property
    def stop_file(self) -> Path:
        """Whoever makes it asks this run to stop, and none that comes later."""
        return self.path.with_suffix(STOP_SUFFIX)

    def write(self, members: list[Member]) -> None:
        """Name all processes of the run. Its main process calls this."""
        record = {
            "members": [asdict(member) for member in members],
            "folder": _identity(self.path.parent.parent),
            "job": self._job,
        }
        write_text(self.path, json.dumps(record))

    def start_heartbeat(self) -> None:
        """Renew the file's time until `end`. One process of each host calls this."""

        def renew() -> None:
            while not self._ended.wait(_HEARTBEAT_SECONDS):
                with suppress(OSError):  # a full or slow disk; training itself will say so
                    os.utime(self.path)

        threading.Thread(target=renew, daemon=True).start()

    def check(self) -> None:
        """Raise `TrainingError` where this run does not own the folder any more."""
        if _newest(self.path.parent) != self.path:
            raise TrainingError(
                f"{self.path.parent.parent}: {self.path} is gone or another run's, which takes a "
                f"folder over after {STALE_SECONDS:.0f} s without a sign of life: this run ends, "
                "and writes nothing more"
            )

    def end(self) -> None:
        """Leave the folder to the next run."""
        self._ended.set()
        owners, number = self.path.parent, _number(self.path)
        with suppress(OSError):  # such as a disk that fails; the next start sees who is gone
            patterns = ("*.json", ".*.json.*", f"*{STOP_SUFFIX}", f".*{STOP_SUFFIX}.*")
            for path in chain.from_iterable(map(owners.glob, patterns)):
                if _number(path) <= number:
                    path.unlink(missing_ok=True)
            owners.rmdir()


@contextmanager
def own_run_folder(folder: Path) -> Iterator[Ownership]:
    """Own `folder` until the end, also after an error. A run's main process calls this.

    Folders that were made for it go again if nothing was put into them.

    Raises:
        TrainingError: a run that lives owns it, or it cannot be written to.
    """
    made: list[Path] = []
    try:
        made = _make_folders(folder / OWNERS_FOLDER)
        ownership = _take(folder)
    except OSError as error:
        _remove_empty(made)
        where = error.filename or folder
        raise TrainingError(
            f"{folder}: cannot be written to: {where}: {error.strerror}: give another run.dir"
        ) from None
    ownership.start_heartbeat()

    def release() -> None:
        ownership.end()
        _remove_empty(made)

    with released_at_end(release):
        yield ownership


@dataclass(frozen=True)
class Owner:
    """Who is found in a folder."""

    path: Path
    who: str  # process, host and age, as far as they are known
    gone: str | None  # why it does not live any more; None: it lives, or may live
    sign_of_life: str | None = None  # where that is all that is known of it, how old it is
    refusal: str = ""  # what another start is told


def find_owner(folder: Path) -> Owner | None:
    """The run in `folder`; None: nobody owns it.

    Raises:
        OSError: the folder cannot be read.
    """
    newest = _newest(folder / OWNERS_FOLDER)
    return newest and _examine(newest, folder, None)


def share(ownership: Ownership | None) -> None:
    """Name every process of the run in its folder; every rank calls this once they are connected.

    A second start then sees ranks that outlive the main process, too.
    """
    import torch.distributed as dist

    if dist.get_world_size() == 1:
        return
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (Member.this(), ownership and ownership.path))
    members, paths = zip(*gathered, strict=True)
    if ownership is not None:
        ownership.write(list(members))
    elif paths[0] is not None and launched().local_rank == 0:
        Ownership(paths[0], None).start_heartbeat()


def _take(folder: Path) -> Ownership:
    owners = folder / OWNERS_FOLDER
    job = _job()
    while True:
        before = _newest(owners)
        if before is not None:
            gone = _why_gone(before, folder, job)
            say(f"{folder}: taken over: {gone}", sys.stderr)
        mine = owners / f"{_number(before) + 1 if before else 1:08d}.json"
        ownership = Ownership(mine, job)
        try:
            mine.touch(exist_ok=False)
        except FileExistsError:
            continue  # another start was faster: look at it
        except FileNotFoundError:
            owners.mkdir(parents=True)  # the owner before has just ended
            continue
        ownership.write([Member.this()])
        # One that looked before an earlier owner ended can come by a number of its own.
        others = [path for path in owners.glob("*.json") if path not in (mine, before)]
        try:
            for other in others:
                _why_gone(other, folder, job)
        except TrainingError:
            mine.unlink(missing_ok=True)
            raise
        return ownership


def _why_gone(path: Path, folder: Path, job: Job | None) -> str:
    """Why the run that wrote `path` does not live any more.

    Raises:
        TrainingError: it lives, or may live.
    """
    found = _examine(path, folder, job)
    if found.gone is None:
        raise TrainingError(found.refusal)
    return found.gone


def _examine(path: Path, folder: Path, job: Job | None) -> Owner:
    try:
        now, identity = _now_on_disk(path.parent), _identity(folder)
        silent_seconds = now - path.stat().st_mtime
        text = path.read_text()
    except FileNotFoundError:  # an ending run takes its empty folder along
        return Owner(path, "a run", "the run in it has just ended")
    try:
        record = json.loads(text)
        members = [Member(**member) for member in record["members"]]
        first, its_folder, its_job = members[0], record["folder"], record["job"]
    except (ValueError, LookupError, TypeError):
        if silent_seconds > STALE_SECONDS:
            why = f"{path.name} is not readable and {_age(silent_seconds)} old"
            return Owner(path, "a run", why)
        refusal = (
            f"{folder} is in use: another run is just starting in it. Wait for it, or give this "
            f"run another run.dir; if it does not live, wait {STALE_SECONDS:.0f} s"
        )
        return Owner(path, "a run that is just starting", None, refusal=refusal)
    started = f"process {first.process} on {first.host}, started {_age(now - first.started)} ago"
    wait = "wait for its end or stop it, or give this run another run.dir"
    alive = [member for member in members if member.is_alive()]
    elsewhere = [member for member in members if member.is_alive() is None]
    # A copy of a folder whose run lives is no reason to wait; but some disks renumber folders.
    is_copy = bool(alive) and its_folder != identity
    if alive and not is_copy:
        rest = alive[0]
        how = (
            f", is gone, but process {rest.process} of it still runs" if first not in alive else ""
        )
        refusal = f"{folder} is in use by another run: {started}{how}: {wait}"
        return Owner(path, f"{started}{how}", None, refusal=refusal)
    if not elsewhere and not is_copy:
        return Owner(path, started, f"its last run, {started}, is gone")
    if its_job is not None and job is not None and _comes_before(its_job, job):
        return Owner(path, started, f"its last run, {started}, was restarted by torchrun")
    silent = _age(silent_seconds)
    if silent_seconds > STALE_SECONDS:
        why = f"its last run, {started}, gave no sign of life for {silent}"
        return Owner(path, started, why, silent)
    refusal = (
        f"{folder} is in use by another run: {started}, last sign of life {silent} ago: {wait}; if "
        f"it is gone, try again in {STALE_SECONDS - silent_seconds + 1:.0f} s"
    )
    return Owner(path, started, None, silent, refusal)


def _job() -> Job | None:
    """What torchrun runs here; None: another started this process."""
    if _JOB not in os.environ:
        return None
    place = ":".join(map(str, meeting_place() or ())) if has_torchruns_store() else ""
    return os.environ[_JOB], int(os.environ.get(_RESTARTS, "0")), place


def _comes_before(theirs: Sequence, ours: Job) -> bool:
    """Whether `theirs` is an earlier attempt of the same job, whose processes torchrun has ended.

    A job's attempts share torchrun's store, and there is one at a time. A machine that joined makes
    a new one that is no restart by anyone's count.
    """
    name, num_restarts, *place = theirs
    return name == ours[0] and (num_restarts < ours[1] or (place == [ours[2]] and ours[2] != ""))


def _newest(owners: Path) -> Path | None:
    return max(owners.glob("*.json"), key=_number, default=None)


def _number(path: Path) -> int:
    digits = path.name.lstrip(".").partition(".")[0]
    return int(digits) if digits.isdigit() else 0


def _identity(folder: Path) -> int:
    """Tells a folder from its copies; a folder that is moved stays itself."""
    return folder.stat().st_ino


def _now_on_disk(folder: Path) -> float:
    """The present time, by the clock that gives files in `folder` their time."""
    os.utime(folder)
    return folder.stat().st_mtime


def _age(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _place() -> str:
    return f"{_kernel()} {_process_space()}"


def _birth(process) -> str:
    """The kernel's own count, which stays the same when clocks are set."""
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return str(process.create_time())


def _kernel() -> str:
    """The running kernel: other hosts, and this one before it was restarted, have another."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _process_space() -> str:
    """Containers of one kernel number their processes apart."""
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _make_folders(folder: Path) -> list[Path]:
    """Make `folder` and what is missing above it; returns what was made, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
