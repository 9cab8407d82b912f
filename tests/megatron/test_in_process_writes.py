"""Why a checkpoint's files are written by threads: plain Megatron-core forks for each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, os, sys
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.megatron.in_process_writes import write_in_process

platform.current()
from megatron.core import dist_checkpointing

forked = [0]
os.register_at_fork(before=lambda: forked.__setitem__(0, forked[0] + 1))


def num_forks(folder):
    before = forked[0]
    folder.mkdir()
    tensor = dist_checkpointing.ShardedTensor.from_rank_offsets("w", torch.arange(4.0))
    dist_checkpointing.save({"w": tensor}, str(folder))
    return forked[0] - before


if __name__ == "__main__":
    backend = platform.current().distributed_backend()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    root = Path(sys.argv[1])
    plain = num_forks(root / "plain")
    write_in_process()
    corrected = num_forks(root / "corrected")
    read = dist_checkpointing.load_plain_tensors(str(root / "corrected"))
    print(json.dumps([plain, corrected, read["w"].tolist()]))
"""


def test_plain_saves_fork(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, tmp_path], stdout=subprocess.PIPE, check=True, timeout=300
    )
    plain, corrected, values = json.loads(done.stdout.splitlines()[-1])
    assert plain > 0
    assert corrected == 0
    assert values == [0.0, 1.0, 2.0, 3.0]
