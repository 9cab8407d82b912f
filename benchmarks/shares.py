"""Steps read by shares (`parallel.vision: tile_parallel`) against steps that one process reads.

    python benchmarks/shares.py [--shares 4] [--steps 6] [key=value ...]

Photographs of 0.5 to 2 megapixels go through both, in one process and in turn, so that whatever
else the machine does meets both. Printed are the processor seconds of a step: of the process that
reads alone, and of the shares, the busiest one and all together, with their ratios.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from nvlm.config import RunConfig, load_config
from nvlm.data.loading.training_data import open_training_data
from nvlm.parallel.tiles import Share

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = [(800, 600), (1024, 768), (1280, 960), (1600, 1200)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_photographs(folder / "data" / "train" / "photographs")
        config = load_config(
            REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
            [
                f"data.root={folder / 'data'}",
                "data.blend=null",
                f"run.dir={folder}",
                "data.num_workers=0",
                "train.global_batch_size=8",
                *arguments.overrides,
            ],
        )
        report(*measure(config, arguments.shares, arguments.steps))


def write_photographs(folder: Path) -> None:
    """As JPEG, which is what photographs are."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with webdataset.TarWriter(str(folder / "photographs.tar"), encoder=False) as writer:
        for number in range(64):
            coarse = Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize(SIZES[number % 4], Image.Resampling.BICUBIC).save(file, "JPEG")
            turns = [
                {"role": "user", "content": "<image>\nWhat is this?"},
                {"role": "assistant", "content": f"Number {number}."},
            ]
            text = json.dumps({"messages": turns}).encode()
            writer.write({"__key__": f"{number:03d}", "json": text, "jpg": file.getvalue()})


def measure(
    config: RunConfig, num_shares: int, num_steps: int
) -> tuple[list[float], list[list[float]]]:
    """Seconds of each step read alone, and of each of its shares."""
    readers = [open_training_data(config).batches(0, 1)]
    for number in range(num_shares):
        share = Share(number, num_shares)
        readers.append(open_training_data(config).batches(0, 1, share=share))
    taken = [[next_step(reader) for reader in readers] for _ in range(num_steps + 1)]
    taken = taken[1:]  # the first one opens files
    return [seconds[0] for seconds in taken], [seconds[1:] for seconds in taken]


def next_step(steps: Iterator) -> float:
    started = time.process_time()
    next(steps)
    return time.process_time() - started


def report(alone: list[float], shares: list[list[float]]) -> None:
    one = statistics.median(alone)
    busiest = statistics.median(map(max, shares))
    together = statistics.median(map(sum, shares))
    print(f"one process: {one:.3f} s of processor a step")
    print(f"busiest of {len(shares[0])} shares: {busiest:.3f} s, ratio {busiest / one:.2f}")
    print(f"all shares together: {together:.3f} s, ratio {together / one:.2f}")


if __name__ == "__main__":
    main()
