"""What the ranks of a run do at its start; in torchrun's first attempt, the last one then fails.

Argument: a folder for what each of them sees.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nvlm.train.fit  # noqa: F401  # chooses the platform

import torch  # isort: skip
import torch.distributed as dist  # isort: skip
from helpers.small_model import small_config
from nvlm.launch import launched
from nvlm.parallel.agreement import meet, on_ranks
from nvlm.parallel.groups import initialize, shut_down


def main(folder: Path) -> None:
    here, attempt = launched(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with (folder / f"attempt{attempt}-rank{here.rank}").open("w", buffering=1) as seen:
        found = on_ranks([0], lambda: "found")
        print(f"{found or 'found'} by 0", file=seen)
        initialize(small_config("train.global_batch_size=2"))
        meet("starting")
        print("met", file=seen)
        total = torch.tensor(here.rank + 1)
        dist.all_reduce(total)
        print(f"sum {total}", file=seen)
        meet("looking")
    if attempt == 0 and here.rank == here.world_size - 1:
        os._exit(1)
    meet("ending")
    shut_down()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
