"""The loader: how long training waits for data, and whether its memory stays flat.

    python benchmarks/loader.py [--steps N] [--samples N]

1. The tiny SFT run is trained for some steps on the demo data with 0, 1 and 2 workers; the share of
   its time that it waits for data, from its own metrics (the first steps, in which workers start,
   are left out).
2. Many small samples go through the loader with 2 workers; resident memory of this process and its
   workers at every tenth of the way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import webdataset
from rich.console import Console
from rich.table import Table

from nvlm.config import RunConfig, load_config
from nvlm.data.loading.training_data import open_training_data

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = "configs/run/tiny/sft.yaml"
NUM_FIRST_STEPS = 3


def train(folder: Path, num_workers: int, steps: int) -> list[dict]:
    """Metrics of the tiny run's steps."""
    run = folder / f"workers{num_workers}"
    command = [
        *(sys.executable, "-m", "nvlm", "train", TINY),
        *(f"data.root={folder / 'data'}", f"data.index_dir={folder / 'index'}", f"run.dir={run}"),
        *(f"train.steps={steps}", f"data.num_workers={num_workers}", "log.tensorboard=false"),
    ]
    subprocess.run(command, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def print_waiting(folder: Path, steps: int, console: Console) -> None:
    build = [sys.executable, "-m", "nvlm", "data", "build-demo", str(folder / "data")]
    subprocess.run(build, check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    table = Table(title=f"tiny SFT run, {steps} steps", title_justify="left")
    for heading in ("workers", "s per step", "s waiting for data", "share"):
        table.add_column(heading, justify="right")
    for num_workers in (0, 1, 2):
        records = train(folder, num_workers, steps)[NUM_FIRST_STEPS:]
        seconds = sum(record["seconds"] for record in records) / len(records)
        waiting = sum(record["data_seconds"] for record in records) / len(records)
        cells = [f"{seconds:.3f}", f"{waiting:.4f}", f"{waiting / seconds:.2%}"]
        table.add_row(str(num_workers), *cells)
    console.print(table)


def write_small_samples(folder: Path, num_samples: int) -> None:
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "text-000000.tar"), encoder=False) as writer:
        for number in range(num_samples):
            messages = [
                {"role": "user", "content": f"What is {number} and {number}?"},
                {"role": "assistant", "content": f"It is {2 * number}."},
            ]
            text = json.dumps({"messages": messages}).encode()
            writer.write({"__key__": f"{number:09d}", "json": text})


def memory_along_the_way(config: RunConfig, num_samples: int) -> Iterator[tuple[int, int, float]]:
    """(samples, bytes, seconds) at every tenth: of this process and its workers, with pages that
    they share counted once."""
    process = psutil.Process(os.getpid())
    seen, next_report = 0, num_samples // 10
    started = time.perf_counter()
    for batch in open_training_data(config).batches(0, 1):
        seen += sum(len(micro_batch.sample_keys) for micro_batch in batch.micro_batches)
        if seen >= next_report:
            family = [process, *process.children(recursive=True)]
            num_bytes = sum(member.memory_full_info().pss for member in family)
            yield seen, num_bytes, time.perf_counter() - started
            next_report += num_samples // 10
        if seen >= num_samples:
            return


def print_memory(folder: Path, num_samples: int, console: Console) -> None:
    write_small_samples(folder / "many" / "train" / "text", 20_000)
    config = load_config(
        REPOSITORY / TINY,
        [
            f"data.root={folder / 'many'}",
            f"data.index_dir={folder / 'index'}",
            f"run.dir={folder}",
            "data.num_workers=2",
            "train.global_batch_size=16",
        ],
    )
    table = Table(title="memory of the loader and 2 workers", title_justify="left")
    for heading in ("samples", "MB", "by the first tenth's", "samples/s"):
        table.add_column(heading, justify="right")
    first = 0
    for seen, num_bytes, seconds in memory_along_the_way(config, num_samples):
        first = first or num_bytes
        cells = [f"{num_bytes / 1e6:.0f}", f"{num_bytes / first:.3f}", f"{seen / seconds:,.0f}"]
        table.add_row(f"{seen:,}", *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--samples", type=int, default=100_000)
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        print_memory(Path(folder), arguments.samples, console)
        print_waiting(Path(folder), arguments.steps, console)


if __name__ == "__main__":
    main()
