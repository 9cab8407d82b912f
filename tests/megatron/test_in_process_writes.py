"""Why torch's writer writes a checkpoint's files: Megatron-core's copies all first, and forks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, os, sys, weakref
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from nvlm import platform
from nvlm.megatron.in_process_writes import in_process_writer

NUM_TENSORS, NUM_VALUES = 6, 7
platform.current()
from megatron.core import dist_checkpointing

forked = [0]
os.register_at_fork(before=lambda: forked.__setitem__(0, forked[0] + 1))


class Copies(TorchDispatchMode):
    # Counts the tensors that are copied, and how many copies there are at most at a time.

    alive, most, total = 0, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = (torch.ops.aten.clone.default, torch.ops.aten.empty.memory_format)
        if func in made and result.numel() == NUM_VALUES:
            weakref.finalize(result, self.count, -1)
            self.count(1)
        return result

    def count(self, change):
        self.alive += change
        self.most = max(self.most, self.alive)
        self.total += max(0, change)


def saved(folder, *strategy):
    # Returns forks, copies in all and most of them at a time. Each tensor is a part of a buffer.
    before = forked[0]
    folder.mkdir()
    buffer = torch.arange(float(NUM_VALUES * NUM_TENSORS))
    state = {
        f"w{number}": dist_checkpointing.ShardedTensor.from_rank_offsets(f"w{number}", part)
        for number, part in enumerate(buffer.split(NUM_VALUES))
    }
    with Copies() as copies:
        dist_checkpointing.save(state, str(folder), *strategy)
    return forked[0] - before, copies.total, copies.most


if __name__ == "__main__":
    backend = platform.current().distributed_backend()
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    root = Path(sys.argv[1])
    plain = saved(root / "plain")
    corrected = saved(root / "corrected", in_process_writer(lambda: None))
    values = dist_checkpointing.load_plain_tensors(str(root / "corrected"))
    joined = torch.cat([values[f"w{number}"] for number in range(NUM_TENSORS)])
    print(json.dumps([plain, corrected, joined.tolist()]))
"""


def test_plain_saves_fork_and_copy_all_first(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, tmp_path], stdout=subprocess.PIPE, check=True, timeout=300
    )
    plain, corrected, values = json.loads(done.stdout.splitlines()[-1])
    num_tensors = len(values) // 7
    forks, _, most = plain
    assert forks > 0 and most == num_tensors
    forks, total, most = corrected
    assert forks == 0 and total == num_tensors and most == 1
    assert values == list(range(7 * num_tensors))
