"""Steps of the small model with experts in every second layer, at layouts that share them.

As a script under torchrun it goes through several layouts, like `layout_steps`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from helpers import adapter_steps, layout_steps, small_model
from helpers.layout_steps import (
    OPTIMIZER,
    TwoSteps,
    losses_and_gradients,
    second_step,
    two_steps,
    wrapped,
)
from nvlm.batch import IGNORED_LABEL, MicroBatch
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import initialize

# Weights large enough for errors in the routers' losses to show.
EXPERTS = [
    "model.language.moe={num_experts: 4, every_nth_layer: 2, ffn_hidden_size: 96,"
    " load_balance_loss: 0.5, z_loss: 0.1}"
]
# Experts cannot have adapters; routers stay as they are.
ADAPTERS = [
    "stage.adapters={'language_model.*.self_attention.linear_*.weight': {rank: 4, dora: true}}"
]
ADAPTED = "gradients of adapters of attention"
GRADIENTS, STEPS, RESUMED = "gradients", "two steps", "resumed"


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
        ADAPTED: adapter_steps.gradients(config_of(*ADAPTERS, *overrides), parallel, with_images),
        STEPS: two_steps(config, parallel, save_to is not None, Steps),
    }
    if resume_from:
        results[RESUMED] = second_step(config, parallel, resume_from, Steps)
    return results


if __name__ == "__main__":
    layout_steps.go_through_layouts(all_cases)
