"""Steps with `parallel.vision: tile_parallel` against `tensor`, on four processes of one machine.

    python benchmarks/placement.py [--steps 8] [--tiles 12] [key=value ...]

At tensor size 2 x pipeline size 2. Both trainings live in the same processes and take the same
steps in turn, so that whatever else the machine does meets both; losses have to agree. Printed are,
per step, the median seconds, the processor seconds of all processes and those of the busiest one,
each with the ratio of the two placements. Where processes share cores, as on a laptop, seconds are
about the work of all. With a device for each, a step takes at least as long as the busiest works.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from nvlm.batch import IGNORED_LABEL, Findings, MicroBatch, StepBatch, StepPart, WholeStep
from nvlm.config import RunConfig, load_config
from nvlm.launch import launched
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import Parallel, initialize, shut_down
from nvlm.parallel.tiles import own_share
from nvlm.sizes.visual import VisualLayout

NUM_PROCESSES = 4
PLACEMENTS = ("tensor", "tile_parallel")
NUM_MICRO_BATCHES = 4
# A wider encoder than the tiny model's, so that it counts beside the decoder.
SIZES = [
    "parallel.tensor=2",
    "parallel.pipeline=2",
    "train.precision=fp32",
    "model.vision.num_layers=8",
    "model.language.num_layers=8",
    "stage.sequence_length=512",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--tiles", type=int, default=12, help="of each of the 4 micro-batches")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    if launched().world_size == 1:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        program += [f"--nproc-per-node={NUM_PROCESSES}", __file__, *sys.argv[1:]]
        quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
        sys.exit(subprocess.run(program, check=False, env=quiet).returncode)
    compare(arguments.steps, arguments.tiles, arguments.overrides)


def compare(num_steps: int, num_tiles: int, overrides: list[str]) -> None:
    """Take the steps of both in turn, and print."""
    configs = {
        placement: load_config(
            Path("configs/run/tiny/sft.yaml"),
            [*SIZES, f"parallel.vision={placement}", *overrides],
        )
        for placement in PLACEMENTS
    }
    parallel = initialize(configs["tensor"])
    from nvlm.train.training import Training, build_with_weights

    trainings = {
        placement: Training(config, parallel, build_with_weights(config, parallel, None))
        for placement, config in configs.items()
    }
    taken: dict[str, list[Taken]] = {placement: [] for placement in PLACEMENTS}
    losses: dict[str, list[float]] = {placement: [] for placement in PLACEMENTS}
    for step in range(num_steps + 1):  # the first one warms up
        for placement, training in trainings.items():
            shares_tiles = training.config.parallel.shares_tiles
            read = a_step(training.config, step, num_tiles)
            read = part_of(read, parallel) if shares_tiles else read
            dist.barrier()
            start, worked = time.perf_counter(), time.process_time()
            batch = next_step_batch(iter([read]), parallel, shares_tiles)
            assert batch is not None
            losses[placement].append(training.take_step(batch).result.loss)
            seconds, work = time.perf_counter() - start, [0.0] * NUM_PROCESSES
            dist.all_gather_object(work, time.process_time() - worked)
            taken[placement].append(Taken(seconds, sum(work), max(work)))
    if parallel.is_main:
        report({name: steps[1:] for name, steps in taken.items()})
        pairs = zip(losses["tile_parallel"], losses["tensor"], strict=True)
        apart = max(abs(ours - theirs) / theirs for ours, theirs in pairs)
        print(f"losses differ by {apart:.1e} at most")
    shut_down()


class Taken(NamedTuple):
    """By one step."""

    seconds: float
    work: float  # processor seconds of all processes
    busiest: float  # of the one that has most


def report(taken: dict[str, list[Taken]]) -> None:
    for what in Taken._fields:
        median = {
            name: statistics.median(getattr(step, what) for step in steps)
            for name, steps in taken.items()
        }
        ratio = median["tile_parallel"] / median["tensor"]
        values = ", ".join(f"{name} {value:.3f} s" for name, value in median.items())
        print(f"{what}: {values}, tile_parallel / tensor {ratio:.2f}")


def a_step(config: RunConfig, seed: int, num_tiles: int) -> StepBatch:
    """Random tokens and pixels."""
    visual, length = VisualLayout.from_config(config), config.stage.sequence_length
    generator = torch.Generator().manual_seed(seed)
    vocabulary, size = config.model.language.vocab_size, visual.image_size
    micro_batches = []
    for _ in range(NUM_MICRO_BATCHES):
        image_mask = torch.arange(length)[None] < visual.num_tokens(num_tiles, num_tiles)
        tokens = torch.randint(vocabulary, (1, length), generator=generator)
        labels = tokens.roll(-1, 1).masked_fill(image_mask, IGNORED_LABEL)
        pixels = torch.randint(
            256, (num_tiles, 3, size, size), generator=generator, dtype=torch.uint8
        )
        starts = torch.tensor([0, length], dtype=torch.int32)
        positions = torch.arange(length)[None]
        micro_batches.append(MicroBatch(tokens, labels, positions, image_mask, starts, pixels))
    return StepBatch(micro_batches, [], {})


def part_of(step: StepBatch, parallel: Parallel) -> StepPart:
    """What this process would have read of the step."""
    num_tiles = [micro_batch.num_tiles for micro_batch in step.micro_batches]
    share = own_share(parallel)
    start, stop = share.tiles(sum(num_tiles))
    text = replace(step, micro_batches=[m.without_tiles() for m in step.micro_batches])
    tiles = torch.cat([m.tiles for m in step.micro_batches])[start:stop]
    found = Findings([], {}, sum(num_tiles))
    return StepPart(tiles, found, lambda _: WholeStep(text, num_tiles, []))


if __name__ == "__main__":
    main()
