"""How a failure becomes a user's line and an exit code: the one net below all verbs.

Where a cause is known at its origin, an `NvlmError` is raised there, which names the file or key
and the remedy. What gets here otherwise is looked up in `explain`: causes outside nvlm (disks,
memory, other processes, missing packages) are one line; everything else is a fault of nvlm and
keeps its stack trace. This file imports no torch.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
import traceback
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

from nvlm.ending import begin, is_program, leave_soon
from nvlm.errors import NvlmError
from nvlm.launch import rank_to_speak
from nvlm.printing import printable
from nvlm.reports import is_first_to_say, report, reported, write_for_torchrun

# docs/exit_codes.md says what each is.
FAULT_OF_NVLM = 1
CANNOT_GO_ON = 2
INTERRUPTED = 130
READER_GONE = 141

_REMEDIES = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "the quota is used up: free some space, or write to another disk",
    errno.EFBIG: "the file system or `ulimit -f` allows no file as large",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EACCES: "choose a folder that this user may write, or change the rights",
    errno.EPERM: "choose a folder that this user may write, or change the rights",
    errno.EISDIR: "this is a folder; name a file",
    errno.ENOTDIR: "a part of the path is a file; name another folder",
    errno.ENOENT: "it is not there, or was removed meanwhile",
    errno.EMFILE: "raise `ulimit -n`, the number of files that a process may have open",
    errno.ENFILE: "this machine has too many files open: end other programs",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or its connection fails: see the machine's log",
    errno.ESTALE: "the network disk lost the file: mount it again",
    errno.ENOMEM: "not enough memory",
}
# Package -> how it is installed, where it is an extra of ours.
_EXTRAS = {
    "wandb": "wandb",
    "mlflow": "mlflow",
    "datasets": "datasets",
    "av": "video",
    "pycocoevalcap": "evaluate",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
}
_LOST = (
    "the connection to another process of the run is lost, or it did not answer in time: see "
    "what that one or torchrun's summary says, and whether all of them were started"
)
_TOLD_TO_END = (
    "a process that reads the data was told to end, as torchrun does when another process of the "
    "run failed: see what that one says"
)
# A process that ends for another one may learn of it before that one has said why.
_SECONDS_TO_HEAR = 2.0
_CODE = "exit_code_of_nvlm"
# Texts of errors that come without a class of their own, and what they mean.
_MEANINGS = (
    (
        r"can't allocate memory|Cannot allocate memory",
        "not enough memory: use a smaller train.micro_batch_size, fewer data.num_workers, or a "
        "machine with more",
    ),
    (
        r"out of memory",
        "not enough accelerator memory: use a smaller train.micro_batch_size or "
        "stage.sequence_length, train.recompute, or more parallel.tensor",
    ),
    (
        r"EADDRINUSE|address already in use",
        "the port of MASTER_PORT is taken, by another run perhaps: choose another",
    ),
    (
        r"[Cc]onnection closed by peer|Connection reset by peer|Connection refused|Broken pipe"
        r"|Connection was likely closed|failed to connect|Socket Timeout|[Tt]imed out|timeout",
        _LOST,
    ),
    (
        r"Too many open files|received \d+ items of ancdata",
        "too many files are open: raise `ulimit -n`, or use fewer data.num_workers",
    ),
    (
        # How torch's writer says that a file took fewer bytes than it was given.
        r"inline_container|PytorchStreamWriter failed writing|iostream error",
        "a file could not be written to its end: the disk is full, or fails",
    ),
    (
        r"No space left on device|unable to (write|mmap|resize|open shared memory)|Bus error",
        "a disk or the shared memory (/dev/shm) is full: free some space, give the container more "
        "(`--shm-size`), or use fewer data.num_workers",
    ),
    (
        r"DataLoader worker .* is killed by signal: (Terminated|Hangup|Interrupt)",
        _TOLD_TO_END,
    ),
    (
        r"DataLoader worker .* (exited unexpectedly|is killed by signal)",
        "a process that reads the data was killed, perhaps because memory ran out: use fewer "
        "data.num_workers, or a machine with more memory",
    ),
)


def end(error: BaseException) -> int:
    """Say on stderr what ended the program, and return its exit code.

    Of several processes, all of which may fail for one reason, the first to say a thing says it;
    one that only lost another says nothing where that one has said why.
    """
    said: int | None = getattr(error, _CODE, None)
    if said is not None:
        return said
    if isinstance(error, BrokenPipeError):
        # `nvlm ... | head` has what it wants. Python would complain when it flushes at the end.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    if isinstance(error, KeyboardInterrupt):
        if rank_to_speak() == 0:
            _print("interrupted")
        report("interrupted", is_signal=True)
        return INTERRUPTED
    message = explain(error)
    notes = "".join(f"\n  {printable(note)}" for note in getattr(error, "__notes__", ()))
    if message is not None:
        problems = error.args if isinstance(error, NvlmError) else (message,)
        code, what = CANNOT_GO_ON, message
        lines = "\n".join(f"error: {_in_lines(str(problem))}{_whose()}" for problem in problems)
        lines += notes
    else:
        trace = "".join(traceback.format_exception(error))
        code, what = FAULT_OF_NVLM, f"{type(error).__name__}: {error}"
        lines = (
            f"{printable(trace, keep=chr(10))}"
            "error: this is a fault of nvlm: please report it with the lines above, the command "
            f"and its configuration{_whose()}"
        )
    for of_others in (_LOST, _TOLD_TO_END):
        if of_others in what:
            first = reported(_SECONDS_TO_HEAR)
            if first is not None:
                write_for_torchrun(f"rank {first.rank} ended before: {first.what}", is_first=False)
                return code
            what = of_others  # without what differs between those that lost the same one
    report(what)
    if is_first_to_say(what):
        _print(lines)
        write_for_torchrun(f"{what}{_whose()}{notes}")
    return code


def _in_lines(problem: str) -> str:
    """A message whose further lines are indented; text from data cannot begin a line by itself."""
    return "\n  ".join(map(printable, problem.split("\n  ")))


def end_early(error: Exception) -> None:
    """Say at once what will end this process, before it closes what is open.

    That may take long, or be cut off by torchrun, which ends all processes when one has ended. To
    be called by a process of the command line; any other goes on with `error` as it likes.
    """
    if not is_program():
        return
    begin()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    code = end(error)
    setattr(error, _CODE, code)
    leave_soon(code)


def explain(error: BaseException) -> str | None:
    """One line for a cause outside nvlm; None for a fault of ours."""
    if isinstance(error, NvlmError):
        return str(error)
    failures = getattr(error, "failures", None)
    if type(error).__name__ == "CheckpointException" and failures:
        # torch's, a BaseException; it has what each failing rank raised.
        return explain(failures[min(failures)][0])
    if isinstance(error, OSError):
        return _explain_system(error)
    if isinstance(error, MemoryError):
        return _MEANINGS[0][1]
    if isinstance(error, BrokenProcessPool):
        return "a helper process was killed, perhaps because memory ran out: run the command again"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "nvlm").startswith("nvlm"):
        return missing_package((error.name or "").partition(".")[0])
    if isinstance(error, UnicodeDecodeError):
        path, found = _file_being_read(error), error.object[error.start]
        return f"{path or 'a file'}: not UTF-8 text: byte {error.start} is {found:#x}"
    if isinstance(error, RuntimeError):
        # As Megatron-core's writers pass on what the system said to one of them.
        system = re.search(r"\[Errno (\d+)\] ([^:\n]+)(?:: '([^'\n]*)')?", str(error))
        if system is not None:
            return _explain_system(OSError(int(system[1]), system[2].strip(), system[3]))
        for pattern, meaning in _MEANINGS:
            if re.search(pattern, str(error)):
                return f"{meaning} ({_first_line(error)})"
    return None


def missing_package(name: str) -> str:
    """What to say where a package cannot be imported."""
    extra = _EXTRAS.get(name)
    how = f"install it with `pip install 'nvlm[{extra}]'`" if extra else "run scripts/install"
    return f"the package {name} is not installed: {how}"


def _explain_system(error: OSError) -> str:
    remedy = _REMEDIES.get(error.errno or 0)
    paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
    what = error.strerror or _first_line(error) or type(error).__name__
    where = f"{' -> '.join(paths)}: " if paths else ""
    if error.errno == errno.EADDRINUSE:
        remedy = "MASTER_PORT is taken, by another run perhaps: choose another"
    return f"{where}{what}{f': {remedy}' if remedy else ''}"


def _file_being_read(error: BaseException) -> Path | None:
    """The file of the innermost `Path` method in the error's trace."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if "pathlib" in frame.f_code.co_filename and isinstance(frame.f_locals.get("self"), Path):
            found = frame.f_locals["self"]
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def _whose() -> str:
    rank = rank_to_speak()
    return f" [rank {rank}]" if rank else ""


def _print(lines: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads it
        print(lines, file=sys.stderr, flush=True)
