"""How fast shards are indexed, against reading the same tar headers with Python's tarfile.

    python benchmarks/index.py [--samples 20000] [--tokenizer FOLDER]

Writes shards of captions (a small JPEG and a text) to a temporary folder. Times vary from machine
to machine; the ratios, taken in one run, hardly do.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from nvlm.config import RunConfig, changed, load_config
from nvlm.data.index.source_index import open_indexes
from nvlm.data.shards.tar import read_members
from nvlm.data.text.encode import SampleEncoder

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES_PER_SHARD = 5_000
WORDS = ["a", "small", "large", "red", "dog", "cat", "tree", "under", "near", "house", "water"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--tokenizer", default=str(REPOSITORY / "assets" / "tiny" / "qwen2"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), arguments.samples, arguments.tokenizer)


def run(folder: Path, num_samples: int, tokenizer: str) -> None:
    write_shards(folder / "data" / "train" / "captions", num_samples)
    config = load_config(
        REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
        [
            f"data.root={folder / 'data'}",
            f"run.dir={folder / 'run'}",
            f"model.tokenizer={tokenizer}",
        ],
    )
    shards = sorted((folder / "data" / "train" / "captions").glob("*.tar"))
    encoder = SampleEncoder.from_config(config)
    num_processes = len(os.sched_getaffinity(0))
    headers_tarfile = seconds(lambda: [read_with_tarfile(shard) for shard in shards])
    headers_ours = seconds(lambda: [list(read_members(shard)) for shard in shards])
    everything = seconds(lambda: build(config, encoder, expected=num_samples))
    again = seconds(lambda: open_indexes(config, encoder))
    one = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(one)})
    alone = changed(config, {"data.index_dir": str(folder / "alone")})
    on_one_core = seconds(lambda: build(alone, encoder, expected=num_samples))
    os.sched_setaffinity(0, one)

    def line(what: str, duration: float) -> None:
        print(
            f"{what:<44} {duration:8.2f} s {num_samples / duration:12,.0f} samples/s "
            f"{duration / headers_tarfile:6.2f} x tarfile"
        )

    print(f"{num_samples:,} samples in {len(shards)} shards")
    line("tar headers with Python's tarfile", headers_tarfile)
    line("tar headers with nvlm", headers_ours)
    line("whole index, one process", on_one_core)
    line(f"whole index, {num_processes} processes", everything)
    line("index opened again", again)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    peak_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"most memory: {peak:,.0f} MB, of a process beside it {peak_children:,.0f} MB")


def read_with_tarfile(shard: Path) -> int:
    with tarfile.open(shard, "r:") as tar:
        return sum(1 for _ in tar)


def build(config: RunConfig, encoder: SampleEncoder, expected: int) -> None:
    (index,) = open_indexes(config, encoder)
    assert len(index) == expected


def seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def draw_jpeg(width: int, height: int, random: np.random.Generator) -> bytes:
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    encoded = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BILINEAR).save(encoded, "JPEG")
    return encoded.getvalue()


def write_shards(folder: Path, num_samples: int) -> None:
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    images = [draw_jpeg(64 + 8 * i, 100 - 3 * i, random) for i in range(16)]
    for first in range(0, num_samples, SAMPLES_PER_SHARD):
        with webdataset.TarWriter(str(folder / f"{first:09d}.tar"), encoder=False) as writer:
            for number in range(first, min(first + SAMPLES_PER_SHARD, num_samples)):
                text = " ".join(random.choice(WORDS, 12)).encode()
                writer.write({"__key__": f"{number:09d}", "jpg": images[number % 16], "txt": text})


if __name__ == "__main__":
    main()
