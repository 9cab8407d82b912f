"""Packing changes nothing but speed: loss and gradients of packed samples are those of the samples
alone; and what weights make of them is what the arithmetic says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import layout_steps, small_model
from torch import Tensor

from nvlm.batch import IGNORED_LABEL, MicroBatch, check_micro_batch
from nvlm.config import RunConfig
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.text.encode import EncodedSample
from nvlm.sizes.visual import VisualLayout
from nvlm.train.loss_weights import normalize_loss_weights

# (tokens, tiles, trained tokens at the end, weight of the source)
SAMPLES = [(60, 2, 20, 1.0), (20, 0, 15, 0.5), (64, 3, 4, 2.0), (9, 0, 1, 1.0), (30, 1, 9, 0.5)]
LONGEST, ALL = 64, 192


def make_samples(config: RunConfig) -> list[PackedSample]:
    random = np.random.default_rng(5)
    vision, vocabulary = config.model.vision, config.model.language.vocab_size
    samples = []
    for number, (length, num_tiles, num_trained, weight) in enumerate(SAMPLES):
        labels = np.full(length, IGNORED_LABEL)
        labels[-num_trained:] = random.integers(0, vocabulary, num_trained)
        image_mask = np.zeros(length, np.bool_)
        image_mask[2 : 2 + num_tiles * config.model.num_tokens_per_tile] = True
        encoded = EncodedSample(random.integers(0, vocabulary, length), labels, image_mask)
        shape = (num_tiles, 3, vision.image_size, vision.image_size)
        tiles = random.integers(0, 256, shape, dtype=np.uint8)
        samples.append(PackedSample(str(number), encoded, tiles, weight))
    return samples


def collate(
    config: RunConfig, sequences: list[list[PackedSample]], length: int, weighting: str = "token"
) -> MicroBatch:
    vision = config.model.vision
    batch = build_micro_batch(sequences, length, vision.image_size, 0, weighting)
    check_micro_batch(batch, VisualLayout.from_config(config))
    return batch


def gradients(config, parallel, micro_batches) -> tuple[list[Tensor], dict]:
    micro_batches = normalize_loss_weights(micro_batches, parallel)
    chunks = layout_steps.wrapped(small_model.build_chunks(config, parallel))
    result = layout_steps.losses_and_gradients(chunks, micro_batches, parallel)
    return list(result["losses"].values()), layout_steps.assemble([result])


def largest_error(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    errors = {}
    for key, value in expected.items():
        assert value.norm() > 0, key
        errors[key] = float((found[key] - value).norm() / value.norm())
    return max(errors.values())


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return small_model.small_config()


@pytest.fixture(scope="module")
def plain(config) -> list[PackedSample]:
    return [PackedSample(s.key, s.encoded, s.tiles) for s in make_samples(config)]


@pytest.fixture(scope="module")
def alone(config, parallel, plain) -> list[dict]:
    """The gradient of each sample's own mean loss."""
    return [
        gradients(config, parallel, [collate(config, [[sample]], LONGEST)])[1] for sample in plain
    ]


def test_packed_equals_unpacked(config, parallel, plain, measure):
    unpacked = [collate(config, [[sample]], LONGEST) for sample in plain]
    expected_losses, expected = gradients(config, parallel, unpacked)
    starts = np.cumsum([0, *(length for length, *_ in SAMPLES)]).tolist()
    (losses,), found = gradients(config, parallel, [collate(config, [plain], ALL)])
    error = largest_error(found, expected)
    measure("packed gradients, largest relative", "one sample per sequence", error, 1e-5)
    errors = []
    for number, (length, *_) in enumerate(SAMPLES):
        part = losses[0, starts[number] : starts[number] + length]
        truth = expected_losses[number][0, :length]
        assert truth.norm() > 0
        errors.append(float((part - truth).norm() / truth.norm()))
    measure("packed losses per token, relative", "one sample per sequence", max(errors), 1e-5)


def test_row_of_two_packed_sequences_equals_unpacked(config, parallel, plain, measure):
    unpacked = [collate(config, [[sample]], LONGEST) for sample in plain]
    _, expected = gradients(config, parallel, unpacked)
    # Padding in both.
    sequences = [plain[2:4], [plain[4], *plain[:2]]]
    _, found = gradients(config, parallel, [collate(config, sequences, LONGEST * 2)])
    error = largest_error(found, expected)
    measure("gradients of two packed sequences", "one sample per sequence", error, 1e-5)


@pytest.mark.parametrize(
    ("weighting", "weight_of"),
    [
        ("token", lambda num_trained, weight: weight * num_trained),
        ("sample", lambda num_trained, weight: weight),
        ("sqrt_length", lambda num_trained, weight: weight * math.sqrt(num_trained)),
    ],
)
def test_weighted_gradient_is_the_weighted_mean(
    config, parallel, alone, weighting, weight_of, measure
):
    samples = make_samples(config)
    weights = [weight_of(num_trained, weight) for _, _, num_trained, weight in SAMPLES]
    expected = {
        key: sum(w * g[key] for w, g in zip(weights, alone, strict=True)) / sum(weights)
        for key in alone[0]
    }
    # Over several micro-batches: what each counts depends on all of them.
    micro_batches = [
        collate(config, [samples[:2]], ALL, weighting),
        collate(config, [samples[2:]], ALL, weighting),
    ]
    _, found = gradients(config, parallel, micro_batches)
    error = largest_error(found, expected)
    measure(f"gradients with {weighting} weights", "weighted mean by hand", error, 1e-5)


def test_weights_sum_to_the_number_of_trained_tokens(config, parallel):
    samples = make_samples(config)
    for weighting in ("token", "sample", "sqrt_length"):
        batches = [collate(config, [samples[:2]], ALL, weighting)]
        batches.append(collate(config, [samples[2:]], ALL, weighting))
        normal = normalize_loss_weights(batches, parallel)
        total = sum(float(b.weights().sum(dtype=torch.float64)) for b in normal)
        num_trained = sum(num_trained for _, _, num_trained, _ in SAMPLES)
        assert total == pytest.approx(num_trained, rel=1e-6)
    # A step without a trained token has nothing to scale.
    empty = collate(config, [[]], ALL)
    (same,) = normalize_loss_weights([empty], parallel)
    assert torch.equal(same.weights(), empty.weights()) and not same.weights().any()


def test_weights_that_sum_to_it_already_are_not_touched(config, parallel, plain):
    """Bit for bit: the factor is 1."""
    batch = collate(config, [plain], ALL)
    (same,) = normalize_loss_weights([batch], parallel)
    assert torch.equal(same.weights(), batch.weights())
