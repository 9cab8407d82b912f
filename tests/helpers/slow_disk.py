"""Two ranks write a checkpoint; the disk of rank 1 takes longer than a collective may.

Arguments: the folder to write. Then rank 1 does not come to a meeting, and rank 0 says so.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm import platform

platform.current()
from megatron.core.dist_checkpointing import ShardedTensor  # noqa: E402

from helpers import small_model  # noqa: E402
from nvlm.checkpoint_io import check_contents, write_checkpoint  # noqa: E402
from nvlm.errors import NvlmError  # noqa: E402
from nvlm.parallel import agreement  # noqa: E402

LIMIT_SECONDS, DISK_SECONDS = 4, 6


def main() -> None:
    target = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT_SECONDS))
    rank = dist.get_rank()
    # Of a shared buffer, so that both have something to write.
    part = ShardedTensor.from_rank_offsets("w", torch.full((4,), float(rank)), (0, rank, 2))
    flush, flushed = os.fsync, []

    def flush_slowly(file: int) -> None:
        # The values, then the files' checksums.
        if rank == 1 and len(flushed) < 2:
            time.sleep(DISK_SECONDS)
        flushed.append(file)
        flush(file)

    os.fsync = flush_slowly
    write_checkpoint(target, {"w": part}, small_model.small_config())
    os.fsync = flush
    check_contents(target)
    print(f"rank {rank}: written", flush=True)
    agreement.MEETING_TIMEOUT = datetime.timedelta(seconds=1)
    if rank == 0:
        try:
            agreement.meet("resting")
        except NvlmError as error:
            print(error, flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
