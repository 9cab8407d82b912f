"""The optimizer's state for a checkpoint, without looking through all of the process's memory.

What is wrong: Megatron-core 0.16.1's distributed optimizer has Python collect garbage each time it
is asked for its state in the form `fully_reshardable` ("prevent memory leaks with GC disabled"):
0.16 s for a process that has done nothing yet, more than half of what saving the tiny model takes.
Nothing here turns Python's own collection off, so that it needs no help.
What is done: while the state is asked for, the module's collection does nothing.
When the pin moves: `DistributedOptimizer.sharded_state_dict`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def nothing_collected() -> Iterator[None]:
    from megatron.core.optimizer import distrib_optimizer

    kept = distrib_optimizer.gc
    distrib_optimizer.gc = SimpleNamespace(collect=lambda: 0)  # type: ignore[assignment]
    try:
        yield
    finally:
        distrib_optimizer.gc = kept
