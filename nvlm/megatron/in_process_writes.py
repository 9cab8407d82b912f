"""Files of a checkpoint written by threads of the process that has the values.

What is wrong: Megatron-core 0.16.1 forks a process for each file and starts a further one, with a
tracker of its own, to hand the results over, also where the caller waits for them. What is left of
these when a rank is killed stays forever; a writer that is killed leaves its rank waiting; and
forking a process that has threads is not safe.
What is done: its own writing function runs in threads. It takes any queues, and the work is in
system calls, which do not hold Python's lock.
When the pin moves: the arguments of `write_preloaded_data` and `write_preloaded_data_multiproc`,
and whether synchronous saves still pass through the latter.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def write_in_process() -> None:
    """Make Megatron-core's synchronous checkpoints start no process; safe to call again."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if not isinstance(filesystem_async._results_queue, queue.Queue):
        filesystem_async._results_queue = queue.Queue()
        filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write)


def _write(transforms: list, use_msc: bool, rank: int, buckets: list, results: queue.Queue) -> None:
    """As `FileSystemWriterAsync.write_preloaded_data_multiproc`: one file for each bucket."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    written: Any = queue.Queue()
    running: Any = queue.Queue()
    with ThreadPoolExecutor(len(buckets)) as pool:
        for number, bucket in enumerate(buckets):
            running.put(number)
            pool.submit(
                FileSystemWriterAsync.write_preloaded_data,
                transforms,
                number,
                bucket,
                written,
                running,
                use_fsync=True,
                use_msc=use_msc,
            )
    by_number = dict(written.get_nowait() for _ in buckets)
    failures = [result for result in by_number.values() if isinstance(result, Exception)]
    results.put(failures[0] if failures else by_number)
