"""The modality integration rate against numpy and scipy, on random and on a model's features."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_model
from helpers.small_runs import settings_of
from scipy.linalg import sqrtm

from nvlm.config import load_config
from nvlm.evaluate.modality_integration import (
    frechet_distance,
    layer_distance,
    modality_integration_rate,
    without_outliers,
)


def scipy_distance(vision: np.ndarray, text: np.ndarray) -> float:
    """As the paper and the authors' program (its accurate mode) say it, written anew."""
    scale = 1 / np.linalg.norm(text, axis=1).mean()
    kept = []
    for features in (scale * vision, scale * text):
        lengths = np.linalg.norm(features, axis=1)
        lower_median = np.sort(lengths)[(len(lengths) - 1) // 2]
        is_outlier = np.abs(lengths - lower_median) > 3 * lengths.std(ddof=1)
        typical = np.sort(features, axis=0)[(len(features) - 1) // 2]
        kept.append(np.where(is_outlier[:, None], typical, features))
    first, second = (np.cov(features, rowvar=False) for features in kept)
    shift = kept[0].mean(axis=0) - kept[1].mean(axis=0)
    root = sqrtm(first @ second)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


@pytest.mark.parametrize("num_tokens", [(400, 300), (30, 300), (20, 25)])
def test_distances_against_scipy(num_tokens: tuple[int, int], measure):
    """Of more tokens than channels, and of fewer, where covariances are singular."""
    generator = np.random.default_rng(len(num_tokens) + num_tokens[0])
    mixing = generator.normal(size=(48, 48))
    vision = generator.normal(size=(num_tokens[0], 48)) @ mixing + 3
    text = generator.normal(size=(num_tokens[1], 48)) * 2
    text[3] *= 40  # an outlier
    ours = layer_distance(torch.from_numpy(vision), torch.from_numpy(text))
    theirs = scipy_distance(vision, text)
    # scipy's root of a singular product is only good to the square root of the rounding.
    what = f"MIR of a layer with {num_tokens} tokens, relative"
    measure(what, "numpy and scipy.linalg.sqrtm", abs(ours / theirs - 1), 2e-6)


def test_what_a_distance_of_known_value_is(measure):
    """Of two diagonal Gaussians, in closed form: sum of (m - m')^2 + (s - s')^2."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    noise = noise - noise.mean(dim=0)
    white = noise @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(noise.T)).T)
    first, second = torch.arange(1.0, 9).double(), torch.full((8,), 2.0).double()
    found = frechet_distance(white * first + 1, white.flip(0) * second - 2)
    expected = float((first - second).square().sum() + 8 * 9)
    measure("Frechet distance, relative", "its closed form", abs(found / expected - 1), 1e-12)
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least two tokens"):
        frechet_distance(white[:1], white)


def test_outliers_are_replaced_and_scales_do_not_count():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(101, 6, generator=generator, dtype=torch.float64)
    features[7] *= 100
    kept = without_outliers(features)
    assert torch.equal(kept[7], features.median(dim=0).values)
    assert torch.equal(torch.cat([kept[:7], kept[8:]]), torch.cat([features[:7], features[8:]]))
    other = torch.randn(90, 6, generator=generator, dtype=torch.float64) + 1
    distances = [layer_distance(s * features, s * other) for s in (1.0, 50.0)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-12)
    assert modality_integration_rate(distances) == np.log10(sum(distances))
    with pytest.raises(ValueError, match="has no logarithm"):
        modality_integration_rate([0.0, 0.0])


def test_a_models_rate_against_scipy_on_the_same_hidden_states(
    demo_data: Path, tmp_path: Path, parallel, measure, monkeypatch
):
    from nvlm.checkpoint_io import write_checkpoint
    from nvlm.evaluate import mir

    overrides = [*settings_of(demo_data, tmp_path), "checkpoint.load=random"]
    config = load_config("tiny/sft", [*overrides, "model.language.num_layers=2"])
    model = small_model.build(config, parallel)
    checkpoint = write_checkpoint(tmp_path / "c", {"model": model.sharded_state_dict()}, config)
    seen: list = []
    kept = mir._features
    monkeypatch.setattr(mir, "_features", lambda *some: seen.append(kept(*some)) or seen[-1])
    monkeypatch.setattr(mir.Engine, "__exit__", lambda *_: None)  # the groups are the test's
    found = mir.measure_mir(checkpoint, demo_data, "heldout", 9, tmp_path / "out.json")
    ((vision, text, num_read),) = seen
    assert json.loads((tmp_path / "out.json").read_text()) == found
    assert num_read == 9 and len(vision) == 2
    assert len(vision[0]) % config.model.num_tokens_per_tile == 0
    sums = [scipy_distance(v.double().numpy(), t.double().numpy()) for v, t in zip(vision, text)]
    error = abs(found["mir"] - np.log10(sum(sums)))
    measure("MIR of the tiny model", "numpy and scipy.linalg.sqrtm", error, 1e-6)
    # The last layer's states are those that the logits are made of.
    assert not torch.equal(vision[-1], vision[0]) and vision[0].shape == vision[-1].shape
