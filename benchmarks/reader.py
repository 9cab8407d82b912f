"""Raw bytes of samples from local shards, one core: nvlm's index against reading tars in sequence.

    python benchmarks/reader.py [--samples N] [--image-bytes N]

Shards are written to a temporary folder and lie in the page cache, so reading takes processor time
only, and that is what is measured. Ways:

    tarfile           Python's tarfile, member by member, in the order of the shards
    webdataset        its tar iterator and grouping by key, in the order of the shards
    nvlm, in order    byte ranges of the index
    nvlm, shuffled    the same in the order of training
    nvlm, ranges known    shuffled, without looking the ranges up in the index: reading alone
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from rich.console import Console
from rich.table import Table

from nvlm.config import load_config
from nvlm.data.index.source_index import open_indexes
from nvlm.data.order.permutation import SampleOrder
from nvlm.data.shards.shard import ShardReader

SAMPLES_PER_SHARD = 2000
REPOSITORY = Path(__file__).resolve().parents[1]


def write_shards(folder: Path, num_samples: int, image_bytes: int) -> list[Path]:
    """Each sample: a small JSON and an image file of about `image_bytes`."""
    encoded = io.BytesIO()
    Image.new("RGB", (64, 64)).save(encoded, "PNG")
    # Behind the end of a PNG anything may stand; none is decoded here.
    image = encoded.getvalue() + os.urandom(max(0, image_bytes - len(encoded.getvalue())))
    text = b'{"messages": [{"role": "user", "content": "<image>\\nWhat is this?"},'
    text += b' {"role": "assistant", "content": "A picture."}]}'
    shards = []
    for start in range(0, num_samples, SAMPLES_PER_SHARD):
        shards.append(folder / f"shard-{start // SAMPLES_PER_SHARD:06d}.tar")
        with webdataset.TarWriter(str(shards[-1]), encoder=False) as writer:
            for number in range(start, min(num_samples, start + SAMPLES_PER_SHARD)):
                writer.write({"__key__": f"{number:09d}", "json": text, "png": image})
    return shards


def read_with_tarfile(shards: list[Path]) -> int:
    num_bytes = 0
    for shard in shards:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                num_bytes += len(tar.extractfile(member).read())
    return num_bytes


def read_with_webdataset(shards: list[Path]) -> int:
    dataset = webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False)
    return sum(len(sample["json"]) + len(sample["png"]) for sample in dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--image-bytes", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        split = Path(folder) / "data" / "train"
        split.mkdir(parents=True)
        shards = write_shards(split, arguments.samples, arguments.image_bytes)
        config = load_config(
            REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
            [f"data.root={split.parent}", f"data.index_dir={folder}/index", f"run.dir={folder}"],
        )
        (index,) = open_indexes(config)
        reader = ShardReader()
        order = SampleOrder(len(index), 0).rows(0, len(index))[0].tolist()

        def look_up(row: int):
            return str(index.shard_path(row)), [
                *index.text_ranges(row).values(),
                *index.image_ranges(row),
            ]

        def read(places) -> int:
            num_bytes = 0
            for shard, ranges in places:
                for where in ranges:
                    num_bytes += len(reader.read(shard, where))
            return num_bytes

        known = [look_up(row) for row in order]
        ways: dict[str, Callable[[], int]] = {
            "tarfile": lambda: read_with_tarfile(shards),
            "webdataset": lambda: read_with_webdataset(shards),
            "nvlm, in order": lambda: read(map(look_up, range(len(index)))),
            "nvlm, shuffled": lambda: read(map(look_up, order)),
            "nvlm, ranges known": lambda: read(known),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        num_bytes = set()
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                started = time.process_time()
                num_bytes.add(way())
                seconds[name].append(time.process_time() - started)
        assert len(num_bytes) == 1, "every way reads the same"

    title = (
        f"{arguments.samples:,} samples of {np.mean(list(num_bytes)) / len(order) / 1024:.0f} KiB"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("way", "samples/s", "by tarfile's", "by webdataset's"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        ratios = [medians[other] / median for other in ("tarfile", "webdataset")]
        speed = f"{arguments.samples / median:,.0f}"
        table.add_row(name, speed, *(f"{ratio:.1f}" for ratio in ratios))
    Console().print(table)


if __name__ == "__main__":
    main()
