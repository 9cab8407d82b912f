"""`nvlm doctor` on ranks of which one is broken, as no configuration makes it.

Argument: what is broken: `results` (the last rank's sums and products have a wrong bit), or
`stuck` (rank 1 never comes to the sums).
"""

from __future__ import annotations

import sys
import time

import nvlm.train.fit  # noqa: F401  # chooses the platform

import torch.distributed as dist  # isort: skip

from nvlm.doctor import collectives, processes
from nvlm.launch import launched


def break_rank(what: str) -> None:
    here = launched()
    if what == "stuck" and here.rank == 1:
        processes._measure_group = lambda *_: time.sleep(600)
    if what == "results" and here.rank == here.world_size - 1:
        all_reduce, product = dist.all_reduce, collectives.measure_product

        def wrong_sum(tensor, *arguments, **named):
            if tensor.numel() <= here.world_size:
                tensor.mul_(1.5)
            return all_reduce(tensor, *arguments, **named)

        def wrong_product(size: int):
            speed, bits = product(size)
            return speed, f"{bits}1"

        collectives.dist.all_reduce = wrong_sum
        processes.measure_product = wrong_product


if __name__ == "__main__":
    from nvlm.cli import main

    break_rank(sys.argv.pop(1))
    main()
