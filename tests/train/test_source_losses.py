"""The loss of each source, apart from the step's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import layout_steps, small_model

from nvlm.batch import StepBatch
from nvlm.train.source_losses import losses_by_source, sums_by_source
from nvlm.train.step import train_step


def _with_sources(batch, number: int, weight: float):
    """The first 30 tokens of source `number`, the others of source 2, the last one of none."""
    numbers = torch.full(batch.tokens.shape, 2, dtype=torch.int32)
    numbers[:, :30], numbers[:, -1] = number, -1
    weights = batch.loss_mask() * (numbers >= 0)
    weights[:, :30] *= weight
    return replace(batch, source_numbers=numbers, loss_weights=weights)


def test_losses_of_a_step_by_source(parallel):
    """Sequences hold several sources; the loss of the step is their mean by weights."""
    training = layout_steps.TwoSteps(small_model.small_config(), parallel).training
    batches = [
        _with_sources(batch, number % 2, 1.0 + number)
        for number, batch in enumerate(layout_steps.with_images(training.config))
    ]
    sums, weights = [0.0] * 4, [0.0] * 4
    with torch.no_grad():
        for batch in batches:
            losses = training.chunks[0](batch)[0].tolist()
            for loss, weight, number in zip(
                losses, batch.weights()[0].tolist(), batch.source_numbers[0].tolist(), strict=True
            ):
                if weight:
                    sums[number] += weight * loss
                    weights[number] += weight
    sources = dict.fromkeys(["a", "b", "c", "not in this step"], 0.5)
    step = StepBatch(batches, [], {}, epochs=sources)
    result = train_step(training.chunks, training.optimizer, step, parallel, 1)
    expected = {name: sums[n] / weights[n] for n, name in enumerate("abc")}
    assert result.source_losses == pytest.approx(expected, rel=1e-6)
    assert result.loss == pytest.approx(sum(sums) / sum(weights), rel=1e-6)


def test_what_has_no_sources_has_no_losses_of_sources():
    config = small_model.small_config()
    batch = small_model.batch(config, 1, [40, 40], num_tiles=0)
    assert sums_by_source(torch.ones(1, 80), batch, 0).shape == (2, 0)
    assert losses_by_source([], []) == {}
    assert losses_by_source(["a", "b"], [3.0, 0.0, 2.0, 0.0]) == {"a": 1.5}
