"""How long planning takes: drawing, lengths, packing and dealing out, per 10,000 samples.

    python benchmarks/planning.py [--samples 4000] [--steps 400] [--against COMMIT]

Shards of two sources, one with images, are written to a temporary folder and indexed; then the
steps of a run are planned as every rank plans them, without reading an image. With `--against` the
planner of another commit plans the same steps in turn, and the ratio is printed: times vary from
machine to machine, the ratio hardly does.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from nvlm.config import load_config
from nvlm.data.index.source_index import open_indexes
from nvlm.data.order.planner import Planner

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4000, help="of each source")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--against", metavar="COMMIT")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        print(json.dumps(plan(arguments.folder, arguments.steps)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sources(folder / "data" / "train", arguments.samples)
        checkouts = {"this": REPOSITORY}
        if arguments.against:
            checkouts[arguments.against] = check_out(arguments.against, folder / "other")
        best = dict.fromkeys(checkouts, float("inf"))
        drawn = {}
        for _ in range(NUM_ROUNDS):
            for name, checkout in checkouts.items():
                seconds, drawn[name] = plan_in(checkout, folder, arguments.steps)
                best[name] = min(best[name], seconds)
    for name, seconds in best.items():
        per_10k = 1e3 * seconds * 1e4 / drawn[name]
        print(f"{name}: {per_10k:,.0f} ms per 10,000 samples ({drawn[name]:,} drawn)")
    if arguments.against:
        print(f"this by {arguments.against}: {best['this'] / best[arguments.against]:.2f}")


def plan(folder: Path, num_steps: int) -> tuple[float, int]:
    """(seconds of processor time, samples drawn)."""
    config = load_config(
        REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml",
        [
            f"data.root={folder / 'data'}",
            f"run.dir={folder / 'run'}",
            f"model.tokenizer={REPOSITORY / 'assets' / 'tiny' / 'qwen2'}",
            "stage.sequence_length=4096",
            "train.global_batch_size=16",
        ],
    )
    planner = Planner(config, open_indexes(config))
    started = time.process_time()
    for _ in range(num_steps):
        planner.next_step()
        planner.state()
    return time.process_time() - started, sum(planner.num_drawn)


def plan_in(checkout: Path, folder: Path, num_steps: int) -> tuple[float, int]:
    command = [sys.executable, __file__, "--folder", str(folder), "--steps", str(num_steps)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    seconds, drawn = json.loads(done.stdout.splitlines()[-1])
    return seconds, drawn


def check_out(commit: str, folder: Path) -> Path:
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit, "nvlm"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def write_sources(folder: Path, num_samples: int) -> None:
    random = np.random.default_rng(0)
    sides = random.integers(100, 900, (num_samples, 2)).tolist()
    for name in ("images", "texts"):
        (folder / name).mkdir(parents=True)
        with webdataset.TarWriter(str(folder / name / "000000.tar"), encoder=False) as writer:
            for number, (width, height) in enumerate(sides):
                question = "<image>\nWhat is it?" if name == "images" else "What is a number?"
                messages = [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "seven " * (1 + width * height % 97)},
                ]
                sample = {"__key__": f"{number:06}", "json": json.dumps({"messages": messages})}
                sample["json"] = sample["json"].encode()
                if name == "images":
                    sample["jpg"] = draw_header(width, height)
                writer.write(sample)


def draw_header(width: int, height: int) -> bytes:
    """A JPEG of one colour: the index reads no more than its header."""
    encoded = io.BytesIO()
    Image.new("RGB", (width, height)).save(encoded, "JPEG", quality=1)
    return encoded.getvalue()


if __name__ == "__main__":
    main()
