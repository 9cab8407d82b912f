"""What saving and loading a training takes beside what it keeps, as a program under torchrun.

    checkpoint_memory FOLDER

Each rank writes FOLDER/rankR.json: with our optimizer state and with plain Megatron-core's, most
bytes beyond those before (resident ones: here the device's and the host's are one memory), and the
bytes that it read. Data ranks hold a model of which no tensor is a large part.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from helpers import small_model
from helpers.measure_memory import forget_peak, resident_bytes
from helpers.optimizer_parts import make_plain, read, sharded_state, take_step, written
from nvlm.config import RunConfig
from nvlm.parallel.groups import Parallel, initialize, shut_down

M_MMAP_THRESHOLD = -3
SIZES = [
    "model.vision.num_layers=1",
    "model.language.num_layers=8",
    "model.language.hidden_size=512",
    "model.language.ffn_hidden_size=1024",
    "stage.freeze=[]",
]


def config_in(folder: Path) -> RunConfig:
    return small_model.small_config(*SIZES, f"run.dir={folder}")


def new_training(config: RunConfig, parallel: Parallel):
    """After a step, so that there are moments."""
    from nvlm.train.training import Training

    training = Training(config, parallel, small_model.build_chunks(config, parallel))
    take_step(training.chunks[0], training.optimizer)
    training.step, training.data_state = 1, {}
    return training


def state_of(training) -> list[torch.Tensor]:
    """Everything that this rank updates: weights, their fp32 copies, moments."""
    kept = [*training.optimizer.optimizer.state.values()]
    return [
        *(p.detach() for chunk in training.chunks for p in chunk.parameters()),
        *(p.detach() for group in training.optimizer.param_groups for p in group["params"]),
        *(moments[name] for moments in kept for name in ("exp_avg", "exp_avg_sq")),
    ]


def measured(what: str, action: Callable[[], object]) -> dict[str, int]:
    dist.barrier()
    forget_peak()
    before, read = resident_bytes("VmRSS"), bytes_read()
    action()
    return {
        f"{what} peak": resident_bytes("VmHWM") - before,
        f"{what} read": bytes_read() - read,
    }


def bytes_read() -> int:
    """By this process so far, from wherever."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    # Freed tensors go back to the system at once; else glibc keeps more, the larger they were.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)
    folder = Path(sys.argv[1])
    config = config_in(folder / "run")
    parallel = initialize(config)
    from nvlm.train.optim import bare

    training = new_training(config, parallel)
    truth = [tensor.clone() for tensor in state_of(training)]

    def forget() -> None:
        with torch.no_grad():
            for tensor in state_of(training):
                tensor.fill_(torch.nan)

    results: dict[str, object] = {
        "parameters": sum(p.numel() for chunk in training.chunks for p in chunk.parameters()),
        "largest": max(p.nbytes for chunk in training.chunks for p in chunk.parameters()),
    }
    training.save()  # imports what saving needs
    forget()
    checkpoint = folder / "run/checkpoints/step_00000001"
    training.load(checkpoint)
    training.step = 2
    results |= measured("save", training.save)
    forget()
    results |= measured("load", lambda: training.load(checkpoint))
    results["equal"] = all(map(torch.equal, state_of(training), truth))

    (model,), optimizer = bare(training.chunks), training.optimizer
    make_plain(optimizer)
    plain = folder / f"plain{parallel.rank}"  # what it writes, rank 0 writes
    results |= measured("plain save", lambda: written(plain, sharded_state(model, optimizer)))
    forget()

    def plain_load() -> None:
        loaded = read(folder / "plain0", sharded_state(model, optimizer, is_loading=True))
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])

    results |= measured("plain load", plain_load)
    results["plain equal"] = all(map(torch.equal, state_of(training), truth))
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
    shut_down()


if __name__ == "__main__":
    main()
