"""Worker processes that are forked and end with the process that started them, also a killed one.

Forked, they have what their parent has in memory (a tokenizer, a reader) without loading it again.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from typing import IO, Any, TypeVar

from nvlm.errors import DataError
from nvlm.socket_folder import remove_socket_folder

Item = TypeVar("Item")
Result = TypeVar("Result")

_SECONDS_BETWEEN_TICKS = 0.2


def map_forked(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    num_processes: int,
    who: str,
    tick: Callable[[], None] | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Yield (item, `work(item)`) as they are done, in any order; in this process if it is one.

    Close the generator if it is not read to its end: what runs is then finished, what waits is not
    started. `contextlib.closing` does so after an error.

    Args:
        work: inherited by the processes, so it may refer to anything. Items and results are
            pickled.
        who: names a process in the error: `FOLDER: a process that indexed shards`.
        tick: called a few times a second while no item is done, if there are several processes.

    Raises:
        DataError: a process was killed.
    """
    if num_processes <= 1:
        for item in items:
            yield item, work(item)
        return
    with ProcessPoolExecutor(
        num_processes, get_context("fork"), initializer=_begin, initargs=(work,)
    ) as pool:
        items_running: dict[Future, Item] = {pool.submit(_work_on, item): item for item in items}
        try:
            while items_running:
                done, _ = wait(items_running, _SECONDS_BETWEEN_TICKS, "FIRST_COMPLETED")
                for future in done:
                    yield items_running.pop(future), future.result()
                if tick is not None and not done:
                    tick()
        except BrokenProcessPool:
            raise DataError(
                f"{who} was killed, perhaps because memory ran out; run the same command again to "
                "continue"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any] | None = None


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    end_with_parent()


def _work_on(item: Any) -> Any:
    assert _work is not None
    return _work(item)


def end_with_parent() -> None:
    """To be called in a worker process. A pool's workers would wait forever without their parent,
    and write on beside those of the next run."""
    parent = parent_process()
    assert parent is not None and parent.pid is not None
    number = parent.pid

    def watch() -> None:
        connection.wait([parent.sentinel])
        remove_socket_folder(number)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# What processes that read data write their stacks to when they are asked; inherited by them.
_stacks: IO[bytes] | None = None
_SECONDS_TO_WRITE = 0.5


def allow_stacks() -> None:
    """To be called before processes are forked that will call `give_stacks`."""
    global _stacks
    if _stacks is None:
        _stacks = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - as long as the process


def give_stacks() -> None:
    """Have this worker write its threads' stacks when `stacks_of_workers` asks for them."""
    assert _stacks is not None
    faulthandler.register(signal.SIGUSR2, file=_stacks, all_threads=True)


def stacks_of_workers() -> str:
    """The Python stacks of this process's workers; of one that waits for a disk nothing comes.

    To be called where the process ends anyway: a worker without `give_stacks` dies of it.
    """
    if _stacks is None:
        return ""
    start = _stacks.seek(0, os.SEEK_END)
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGUSR2)
    time.sleep(_SECONDS_TO_WRITE)
    _stacks.seek(start)
    return _stacks.read().decode(errors="replace")
