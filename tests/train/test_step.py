"""A step on Megatron-core's schedule: its loss and counts are those of its micro-batches."""

from __future__ import annotations

import pytest
import torch
from helpers import layout_steps, small_model

from nvlm.batch import SkippedSample, StepBatch
from nvlm.train.step import train_step


def test_loss_is_the_mean_over_all_trained_tokens(parallel):
    """Not a mean of the micro-batches' means: they have different numbers of trained tokens."""
    training = layout_steps.TwoSteps(
        small_model.small_config("train.precision=fp32"), parallel
    ).training
    micro_batches = layout_steps.with_images(training.config)
    num_trained = [int(batch.loss_mask().sum()) for batch in micro_batches]
    assert len(set(num_trained)) > 1
    with torch.no_grad():
        losses = [
            float((training.chunks[0](batch).float() * batch.loss_mask()).sum())
            for batch in micro_batches
        ]
    skipped = [SkippedSample("source", "shard", "key", "image", "cut off")]
    batch = StepBatch(micro_batches, skipped, {}, repaired={"source/rotated": 3})
    result = train_step(training.chunks, training.optimizer, batch, parallel, 1)
    assert result.loss == pytest.approx(sum(losses) / sum(num_trained), rel=1e-6)
    assert result.num_trained_tokens == sum(num_trained)
    assert result.num_tiles == sum(batch.num_tiles for batch in micro_batches)
    assert result.num_samples == sum(len(batch.sample_keys) for batch in micro_batches)
    assert (result.num_skipped, result.num_repaired) == (1, 3)
    assert result.grad_norm > 0
