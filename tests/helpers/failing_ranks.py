"""Trainings of four processes, of which one fails in the second step, one training after the other.

Arguments: a folder for what each process prints, then those of `nvlm train`. Nothing in a
configuration makes one of several processes fail, as a broken device or disk does. Processes are
forks of this one, which has imported everything, and it holds the store as torchrun would; it ends
none of them. Prints per training the exit codes, and the seconds from the first end to the last.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvlm.train.fit  # noqa: F401  # chooses the platform
from nvlm.data.loading.reader import MicroBatchReader
from nvlm.model.nvlm_d import NVLMD

import torch  # isort: skip
from megatron.core.optimizer import ChainedOptimizer  # isort: skip

WORLD_SIZE = 4
FAILING_STEP = 2
# Where -> the rank that fails, the method that does and what it raises; None: it is killed.
FAILURES: dict[str, tuple[int, type, str, Exception | None]] = {
    "forward": (2, NVLMD, "forward", RuntimeError("CUDA error: an illegal memory access")),
    "reader": (1, MicroBatchReader, "_read", OSError(errno.ESTALE, "Stale file", "/data/s.tar")),
    "optimizer": (3, ChainedOptimizer, "step", torch.OutOfMemoryError("CUDA out of memory.")),
    "killed": (3, NVLMD, "forward", None),
}


def fail_in_second_call(of_class: Any, name: str, error: Exception | None) -> None:
    """A step is one call where it has one micro-batch."""
    call: Callable = getattr(of_class, name)
    calls = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == FAILING_STEP:
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise error
        return call(*arguments, **named)

    setattr(of_class, name, failing)


def run_rank(rank: int, where: str, log: Path) -> None:
    from nvlm.cli import main

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "TORCHELASTIC_ERROR_FILE": f"{log}.{rank}.json",
    }
    failing_rank, *failure = FAILURES[where]
    if rank == failing_rank:
        fail_in_second_call(*failure)
    main()


def run_training(where: str, log: Path) -> tuple[list[int], float]:
    """The exit codes by rank, and the seconds between the first end and the last."""
    # Forks inherit the object, and never come to where it would be closed.
    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    os.environ["MASTER_PORT"] = str(store.port)
    ranks = {}
    for rank in range(WORLD_SIZE):
        process = os.fork()
        if process == 0:
            code = 0
            try:
                run_rank(rank, where, log)
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        ranks[process] = rank
    codes, times = [0] * WORLD_SIZE, []
    for _ in range(WORLD_SIZE):
        process, status = os.wait()
        codes[ranks[process]] = os.waitstatus_to_exitcode(status)
        times.append(time.monotonic())
    return codes, times[-1] - times[0]


def main() -> None:
    folder = Path(sys.argv.pop(1))
    os.environ |= {
        "WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "localhost",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    arguments = list(sys.argv)
    for where in FAILURES:
        sys.argv = [*arguments, f"run.dir={folder / where}"]
        outcome = run_training(where, folder / f"{where}.log")
        print(json.dumps([where, *outcome]), flush=True)


if __name__ == "__main__":
    main()
