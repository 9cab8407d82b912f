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
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import small_model
from helpers.measure_memory import forget_peak, resident_bytes
from helpers.optimizer_parts import make_plain, read, sharded_state, take_step, written
from nvlm.config import RunConfig
from nvlm.parallel.groups import Parallel, initialize, shut_down
from nvlm.rows import Constant, Parameter, Place
from nvlm.sizes.parameters import parameters_by_key

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


class Draws(TorchDispatchMode):
    """Counts random numbers, and how many are drawn at a time."""

    total, most = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.total += result.numel()
            self.most = max(self.most, result.numel())
        return result


def drawn(config: RunConfig, parallel: Parallel, checkpoint: Path) -> dict[str, object]:
    """What is drawn for a new model, and for one that a checkpoint of it overwrites."""
    from nvlm.checkpoint_shares import sharded_tensors
    from nvlm.model.parts import initialize
    from nvlm.train.training import build_with_weights

    initialize.BLOCK_SIZE = 2**18
    with Draws() as new:
        (model,) = build_with_weights(config, parallel, None)
    table, equal = parameters_by_key(config.model), []
    for shard in sharded_tensors(model.sharded_state_dict()):
        row, layer = table[shard.key], shard.global_offset[0] if shard.prepend_axis_num else None
        truth = drawn_at_once(config.train.seed, row, layer)
        equal.append(torch.equal(shard.data, truth[shard.global_slice()[shard.prepend_axis_num :]]))
    before = torch.get_rng_state()
    with Draws() as none:
        build_with_weights(config, parallel, checkpoint)
    return {
        "drawn": new.total,
        "drawn at a time": new.most,
        "drawn equal": all(equal),
        "drawn before a load": none.total,
        "generator unchanged": torch.equal(before, torch.get_rng_state()),
    }


def drawn_at_once(seed: int, row: Parameter, layer: int | None) -> torch.Tensor:
    from nvlm.model.parts.initialize import _generator

    if isinstance(row.initial, Constant):
        tensor = torch.full(row.shape, row.initial.value)
    else:
        tensor = torch.empty(row.shape)
        tensor.normal_(0, row.initial.deviation, generator=_generator(seed, row.key, Place(layer)))
    if row.zero_heads is not None:
        row.zero_heads.of(tensor).zero_()
    return tensor


def measured(what: str, action: Callable[[], object]) -> dict[str, int]:
    dist.barrier()
    forget_peak()
    before, read = resident_bytes("VmRSS"), bytes_read()
    action()
    return {
        f"{what} peak": resident_bytes("VmHWM") - before,
        f"{what} read": bytes_read() - read,
    }


def saved_in_background(training) -> dict[str, int]:
    """The first save makes the place for its copy, which the second one uses again."""
    from rich.console import Console

    from nvlm.train.saver import saving

    results = {}
    with saving(training, None, Console(quiet=True)) as saver:

        def save() -> None:
            training.step += 1
            saver.save()
            saver.finish()

        results |= measured("first background save", save)
        results |= measured("next background save", save)
        training.step = 2
    return results


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
    results |= saved_in_background(training)
    forget()
    results |= measured("load", lambda: training.load(checkpoint))
    results["equal"] = all(map(torch.equal, state_of(training), truth))
    results |= drawn(config, parallel, checkpoint)

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
