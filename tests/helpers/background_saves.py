"""Two ranks save trainings in the background and at once, as a program under torchrun.

    background_saves FOLDER

At each of LAYOUTS, FOLDER/NAME/at_once and FOLDER/NAME/background become runs with the same steps.
While a copy is to be made, and while the files are written, training takes further steps. Prints a
line of JSON from rank 0: layout -> what happened meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

from helpers import small_model
from nvlm.config.changed import changed
from nvlm.config.run_sections import CheckpointConfig
from nvlm.parallel.groups import initialize, shut_down
from nvlm.train.save_times import SaveTimes

LAYOUTS = {
    "tensor2": ["parallel.tensor=2"],
    "pipeline2": ["parallel.pipeline=2"],
    "data2": ["train.precision=bf16"],
}
STEPS = (1, 3)
COPY_SECONDS, WRITE_SECONDS = 0.15, 0.25


def update(training, number: int) -> None:
    """A step of Adam that changes every number that a checkpoint has."""
    generator = torch.Generator().manual_seed(number + 100 * dist.get_rank())
    training.optimizer.zero_grad()
    for chunk in training.chunks:
        for parameter in chunk.parameters():
            if parameter.requires_grad:
                parameter.main_grad.normal_(generator=generator)
    training.scheduler.step(increment=1)
    training.optimizer.step()
    training.step = number
    training.data_state = {"step": number}


def run(folder: Path, overrides: list[str]) -> dict[str, list]:
    from nvlm.megatron import staged_state
    from nvlm.train.saver import saving
    from nvlm.train.training import Training

    config = small_model.small_config(*overrides, f"run.dir={folder / 'background'}")
    parallel = initialize(config)
    training = Training(config, parallel, small_model.build_chunks(config, parallel))
    plain_place, waited, alive = staged_state.Stage.place, [], []

    def place_slowly(self, state):
        placed, copy = plain_place(self, state)

        def copy_slowly() -> None:
            time.sleep(COPY_SECONDS)
            copy()

        return placed, copy_slowly

    staged_state.Stage.place = place_slowly  # type: ignore[method-assign]
    try:
        with saving(training, None, Console(quiet=True)) as saver:
            for number in range(1, max(STEPS) + 1):
                update(training, number)
                if number not in STEPS:
                    continue
                training.config = changed(config, {"run.dir": str(folder / "at_once")})
                training.save({"kind": "quick"})
                training.config = config
                training.last_saved = 0
                before = training.copies.seconds
                saver.save()
                update(training, number + 1)
                waited.append(training.copies.seconds - before)
                alive.append(any(thread.is_alive() for thread in saving_threads()))
                training.step = number
    finally:
        staged_state.Stage.place = plain_place  # type: ignore[method-assign]
    return {"waited": waited, "alive": alive}


def saving_threads():
    import threading

    return [thread for thread in threading.enumerate() if thread.name == "nvlm-save"]


def due_steps() -> list[int]:
    """With steps of a second by rank 0's clock, and a clock of rank 1 that stands still."""
    seconds = [0.0]
    is_main = dist.get_rank() == 0
    times = SaveTimes(CheckpointConfig(every="10s"), 0, is_main, lambda: seconds[0])
    due = []
    for step in range(1, 36):
        seconds[0] += 1.0 if is_main else 0.0
        if times.is_due(step):
            due.append(step)
            times.restart(step)
    return due


def main() -> None:
    flush = os.fsync

    def flush_slowly(file: int) -> None:
        time.sleep(WRITE_SECONDS if "/background/" in os.readlink(f"/proc/self/fd/{file}") else 0)
        flush(file)

    os.fsync = flush_slowly
    found: dict[str, object] = {
        name: run(Path(sys.argv[1]) / name, overrides) for name, overrides in LAYOUTS.items()
    }
    dues: list = [None] * dist.get_world_size()
    dist.all_gather_object(dues, due_steps())
    if dist.get_rank() == 0:
        print(json.dumps({**found, "due": dues}), flush=True)
    shut_down()


if __name__ == "__main__":
    main()
