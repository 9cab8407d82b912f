"""What every conversion needs around it: its processes, their shares, progress, the last line."""

from __future__ import annotations

import datetime
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from nvlm.errors import ConvertError
from nvlm.launch import launched
from nvlm.parallel.groups import is_main_process, leaving_groups
from nvlm.parallel.watch import watch_others
from nvlm.platform import HOST_BACKEND
from nvlm.printing import new_console

# Processes wait for the slowest at the end; torchrun notices one that died long before.
_TIMEOUT = datetime.timedelta(hours=12)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among those that convert together; 0 of 1 when started alone."""

    rank: int
    count: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item], num_bytes: Callable[[Item], int]) -> list[Item]:
        """The items that this process handles: consecutive ones, an equal part of all bytes.

        Every item is in one process's share, whatever `count` is.
        """
        total = sum(map(num_bytes, items))
        mine, before = [], 0
        for item in items:
            middle = before + num_bytes(item) / 2
            if min(int(middle * self.count / max(1, total)), self.count - 1) == self.rank:
                mine.append(item)
            before += num_bytes(item)
        return mine


@contextmanager
def conversion_processes() -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone, able to talk to each other.

    Nothing is computed on an accelerator, so they talk as processes on a CPU do, and any number of
    them will do. A group that exists is taken over and left in place: torchrun's rendezvous serves
    a process once, so a program that converts several times there opens one around all of them.
    """
    existed = dist.is_initialized()
    if not existed:
        if launched().world_size > 1:
            dist.init_process_group(HOST_BACKEND, timeout=_TIMEOUT)
        else:
            dist.init_process_group(HOST_BACKEND, store=dist.HashStore(), rank=0, world_size=1)
        watch_others()
    processes = Processes(dist.get_rank(), dist.get_world_size())
    with nullcontext() if existed else leaving_groups():
        yield processes


@contextmanager
def progress_bar(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal of the main process, for its own share; yields what moves it."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=new_console(stderr=True),
        disable=not is_main_process(),
    )
    with bar:
        task = bar.add_task(title, total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)


class Stopwatch:
    """Starts when made; `print_summary` ends a conversion with one line of what it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def print_summary(
        self, done: str, num_tensors: int, num_bytes: int, processes: Processes
    ) -> None:
        """Every process calls this; the main one prints. `num_bytes` were written, by all."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        peaks = [0] * processes.count
        dist.all_gather_object(peaks, peak_resident_bytes())
        if not processes.is_main:
            return
        most = "" if processes.count == 1 else f" (most of {processes.count} processes)"
        print_line(
            f"{done}: {num_tensors:,} tensors, {decimal(num_bytes)} in {seconds:.1f} s: "
            f"{num_tensors / seconds:,.0f} tensors/s, {decimal(int(num_bytes / seconds))}/s; "
            f"peak memory {decimal(max(peaks))}{most}"
        )


def print_line(message: str) -> None:
    """A line for the user, on standard error, from the main process."""
    if is_main_process():
        new_console(stderr=True, soft_wrap=True).print(message, highlight=False, markup=False)


def print_note(message: str) -> None:
    """Something that the user should know but need not act on; from the main process."""
    print_line(f"Note: {message}.")


def peak_resident_bytes() -> int:
    """Most memory that this program had resident.

    Linux hands `ru_maxrss` down from the program that started this one; its own is in `status`.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check_target(out: Path, sources: Sequence[str | Path]) -> None:
    """Raise `ConvertError` where writing `out` would write into a source, or replace it or a link.

    A link could lead anywhere, and would itself be replaced by what is written.
    """
    if out.is_symlink():
        raise ConvertError(f"{out}: is a link: name the folder that it leads to, or another")
    try:
        target = out.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise ConvertError(f"{out}: is not a path that can be written: {error}") from None
    for source in sources:
        taken = Path(source).resolve()
        if target == taken or taken in target.parents or target in taken.parents:
            raise ConvertError(
                f"{out}: is, holds or lies inside {source}, which is read from: name another folder"
            )


def check_free_space(out: Path, num_bytes: int) -> None:
    """Raise `ConvertError` where the disk of `out` has no room for `num_bytes` more."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ConvertError(
            f"{out}: {decimal(num_bytes)} are to be written, but {folder} has only {decimal(free)} "
            "free"
        )
