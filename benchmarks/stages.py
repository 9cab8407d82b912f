"""From one stage to the next in the same processes, against one command for each stage.

    python benchmarks/stages.py [--rounds 3] [key=value ...]

Two processes train the tiny model's stages on the demo's data, tensor parallel, then pipeline
parallel, in either way by turns. Measured is the time from the line that the first stage's final
checkpoint is saved to the first step of the second stage, with the time in which that reads weights
(up to the line that says where it starts from). Both come to the same losses, which is checked.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

STAGES = ("pretrain", "sft")
LAYOUTS = ("parallel.tensor=2", "parallel.pipeline=2")
SETTINGS = ["train.steps=2", "log.tensorboard=false", "data.num_workers=1"]


def lines_of(*arguments: str) -> Iterable[tuple[float, str]]:
    """What `nvlm train` under torchrun prints, each line with its time."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "nvlm", "train", *arguments]
    with subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        for line in process.stdout:
            yield time.perf_counter(), line.rstrip()
    assert process.returncode == 0, f"exit code {process.returncode}: {' '.join(command)}"


def change(lines: list[tuple[float, str]]) -> tuple[float, float, list[str]]:
    """Seconds to the first step of the second stage, of them to its weights; losses of all."""
    saved = next(at for at, line in lines if line.startswith("saved") and "/pretrain/" in line)
    begun = next(at for at, line in lines if "starting from the weights of" in line)
    first = next(at for at, line in lines if at > begun and line.startswith("step 1/"))
    losses = [line.split("grad")[0] for _, line in lines if line.startswith("step ")]
    return first - saved, begun - saved, losses


def in_turn(folder: Path, settings: list[str]) -> tuple[float, float, list[str]]:
    own = [f"stages.{stage}.{layout}" for stage, layout in zip(STAGES, LAYOUTS, strict=True)]
    where = [f"run.dir={folder}", *settings, *own]
    return change(list(lines_of("configs/run/tiny/stages.yaml", *where)))


def by_hand(folder: Path, settings: list[str]) -> tuple[float, float, list[str]]:
    lines: list[tuple[float, str]] = []
    load = "random"
    for stage, layout in zip(STAGES, LAYOUTS, strict=True):
        where = [f"run.dir={folder / stage}", f"checkpoint.load={load}", *settings, layout]
        lines += lines_of(f"configs/run/tiny/{stage}.yaml", *where)
        load = str(folder / stage)
    return change(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, float, list[str]]]] = {"in turn": [], "by hand": []}
    with tempfile.TemporaryDirectory() as folder:
        settings = [*SETTINGS, f"data.index_dir={folder}/index", *arguments.overrides]
        for number in range(arguments.rounds + 1):
            turn = in_turn(Path(folder, f"turn{number}"), settings)
            hand = by_hand(Path(folder, f"hand{number}"), settings)
            assert turn[2] == hand[2], "the losses differ"
            if number:  # the first builds the index
                found["in turn"].append(turn)
                found["by hand"].append(hand)
    medians = {}
    for name, rounds in found.items():
        medians[name] = statistics.median(seconds for seconds, _, _ in rounds)
        to_weights = statistics.median(seconds for _, seconds, _ in rounds)
        print(f"{name}: {medians[name]:.2f} s to the first step, {to_weights:.2f} s to its weights")
    print(f"ratio {medians['in turn'] / medians['by hand']:.2f}")


if __name__ == "__main__":
    main()
