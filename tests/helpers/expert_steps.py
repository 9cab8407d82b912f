"""Steps of the small model with experts in every second layer, at layouts that share them.

As a script under torchrun it goes through several layouts, like `layout_steps`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from helpers import layout_steps, small_model
from helpers.layout_steps import OPTIMIZER, TwoSteps, losses_and_gradients, wrapped
from nvlm.batch import IGNORED_LABEL, MicroBatch
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import Parallel, initialize, shut_down

# Weights large enough for errors in the routers' losses to show.
EXPERTS = [
    "model.language.moe={num_experts: 4, every_nth_layer: 2, ffn_hidden_size: 96,"
    " load_balance_loss: 0.5, z_loss: 0.1}"
]
GRADIENTS, STEPS, RESUMED = "gradients", "two steps", "resumed"
SINGLE = "single"


def config_of(*overrides: str) -> RunConfig:
    return layout_steps.config_of(*EXPERTS, *OPTIMIZER, *overrides)


def padded(micro_batches: list[MicroBatch]) -> list[MicroBatch]:
    """The last tokens of each are padding, of every batch some more."""
    found = []
    for number, batch in enumerate(micro_batches):
        is_padding = torch.arange(batch.tokens.shape[1])[None] >= batch.tokens.shape[1] - 9 * number
        numbers = torch.where(is_padding, -1, 0).to(torch.int32)
        labels = batch.labels.masked_fill(is_padding, IGNORED_LABEL)
        found.append(replace(batch, source_numbers=numbers, labels=labels))
    return found


def with_images(config: RunConfig) -> list[MicroBatch]:
    return padded(layout_steps.with_images(config))


class Steps(TwoSteps):
    batches = (with_images, lambda config: padded(layout_steps.without_images(config)))

    def take(self) -> None:
        super().take()
        means = self.taken.result.router_losses
        self.losses[-self.training.step] = torch.tensor([*means.values()])


def all_cases(
    overrides: list[str], save_to: Path | None = None, resume_from: Path | None = None
) -> dict:
    """Every result of one layout on this process; see `layout_steps.all_cases`."""
    config = config_of(*overrides)
    config = changed(config, {"run": RunSection(name="layout", dir=str(save_to))})
    parallel = initialize(config)
    chunks = wrapped(small_model.build_chunks(config, parallel))
    results = {
        GRADIENTS: losses_and_gradients(chunks, with_images(config), parallel),
        STEPS: two_steps(config, parallel, save_to is not None),
    }
    if resume_from:
        results[RESUMED] = second_step(config, parallel, resume_from)
    return results


def two_steps(config: RunConfig, parallel: Parallel, save: bool) -> dict:
    run = Steps(config, parallel)
    run.take()
    if save:
        run.training.save()
    run.take()
    return run.result()


def second_step(config: RunConfig, parallel: Parallel, resume_from: Path) -> dict:
    run = Steps(config, parallel)
    run.load(resume_from)
    run.take()
    return run.result()


def main() -> None:
    """Arguments: folder, layouts by name; each resumes the checkpoint of the one before."""
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    resume_from = folder / SINGLE
    for name, overrides in layouts.items():
        print(f"layout {name}", flush=True)
        results = all_cases(overrides, folder / name, resume_from)
        resume_from = folder / name
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
