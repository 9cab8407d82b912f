"""How long training is held up by saves in the background, against saves at once.

    python benchmarks/checkpoint_stall.py [--processes 2] [--saves 5] [--size tiny|1gb] [key=value]

One training saves in both ways in turn, so that whatever else the machine does meets both. Printed
are medians, and their ratio:

- held: seconds from the end of a step to the beginning of the next one, and of an update that waits
  for copies; what a device would stand still for;
- lost: the same, and what steps took longer while files were written. Where the writer shares cores
  with what computes, as here, this is about the work of both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from nvlm.batch import MicroBatch, StepBatch
from nvlm.config import RunConfig, load_config
from nvlm.launch import launched
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import initialize, shut_down

NUM_TOKENS = 64
WAYS = ("background", "at once")
# Of random tokens there is nothing to learn: losses jump.
ALWAYS = ["checkpoint.keep=1", "train.steps=100000", "train.spike.deviations=1e6"]
# With the parameters, their copies in fp32 where there are, and two moments: 1 GB.
SIZES = {
    "tiny": [],
    "1gb": [
        "model.language.num_layers=8",
        "model.language.hidden_size=1024",
        "model.language.ffn_hidden_size=2048",
    ],
}


@dataclass
class Seconds:
    """Of saves in one way."""

    held: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--saves", type=int, default=5, help="in each way")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    if launched().world_size == 1 and arguments.processes > 1:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        program += [f"--nproc-per-node={arguments.processes}", __file__, *sys.argv[1:]]
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
        sys.exit(subprocess.run(program, check=False, env=quiet).returncode)
    with tempfile.TemporaryDirectory() as own:
        compare(arguments.size, arguments.saves, arguments.overrides, own)


def compare(size: str, num_saves: int, overrides: list[str], own: str) -> None:
    folder = [own]
    config = load_config(
        Path("configs/run/tiny/sft.yaml"),
        [*SIZES[size], f"run.dir={own}/run", *ALWAYS, *overrides],
    )
    parallel = initialize(config)
    dist.broadcast_object_list(folder, src=0)
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"dir": f"{folder[0]}/run"})}
    )
    from nvlm.train.saver import saving
    from nvlm.train.training import Training, build_with_weights

    training = Training(config, parallel, build_with_weights(config, parallel, None))

    def step() -> float:
        """Seconds, but for those in which the update waited for a copy."""
        read = iter([a_step(config, training.step)])
        dist.barrier()
        started, waited = time.perf_counter(), training.copies.seconds
        batch = next_step_batch(read, parallel, config.parallel.shares_tiles)
        assert batch is not None
        training.take_step(batch)
        return time.perf_counter() - started - (training.copies.seconds - waited)

    found = {way: Seconds() for way in WAYS}
    with saving(training, None, Console(quiet=True)) as saver:
        step()
        plain = statistics.median(step() for _ in range(3))
        for way in [*WAYS] * (num_saves + 1):  # the first ones make what is used again
            plain = 0.5 * plain + 0.5 * step()
            started, waited = time.perf_counter(), training.copies.seconds
            saver.save(wait=way == "at once")
            held, longer = time.perf_counter() - started, 0.0
            while saver._write is not None:
                longer += step() - plain
                saver.due()
            held += training.copies.seconds - waited
            found[way].held.append(held)
            found[way].lost.append(held + max(0.0, longer))
    if parallel.is_main:
        num_bytes = sum(
            path.stat().st_size for path in (Path(folder[0]) / "run/checkpoints/latest").iterdir()
        )
        print(f"{size}: {num_bytes / 1e6:,.0f} MB, {parallel.world_size} processes, ", end="")
        print(f"a step {plain:.2f} s")
        for what in ("held", "lost"):
            report(what, {way: getattr(seconds, what)[1:] for way, seconds in found.items()})
    shut_down()


def report(what: str, seconds: dict[str, list[float]]) -> None:
    median = {way: statistics.median(values) for way, values in seconds.items()}
    ranges = ", ".join(
        f"{way} {median[way]:.3f} s ({min(values):.3f} to {max(values):.3f})"
        for way, values in seconds.items()
    )
    print(f"{what}: {ranges}, background / at once {median['background'] / median['at once']:.1%}")


def a_step(config: RunConfig, seed: int) -> StepBatch:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(config.model.language.vocab_size, (1, NUM_TOKENS), generator=generator)
    image_size = config.model.vision.image_size
    batch = MicroBatch(
        tokens,
        tokens.roll(-1, 1),
        torch.arange(NUM_TOKENS)[None],
        torch.zeros(1, NUM_TOKENS, dtype=torch.bool),
        torch.tensor([0, NUM_TOKENS], dtype=torch.int32),
        torch.zeros(0, 3, image_size, image_size, dtype=torch.uint8),
    )
    return StepBatch([batch], [], {})


if __name__ == "__main__":
    main()
