"""Matrices in 4 bits beside a formula in plain torch, and runs with them; needs bitsandbytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import small_model, spawn
from helpers.small_runs import STEPS, stage_config
from torch import Tensor

from nvlm.config import changed
from nvlm.errors import ConfigError
from nvlm.sizes.adapters import quantized

LOCAL = "model.layer_implementation=local"
NF4 = (
    "stage.adapters={'language_model.*.linear_*.weight': {rank: 4, quantization: nf4},"
    " 'vision_projection.*.linear_*.weight': {rank: 3, dora: true, quantization: nf4}}"
)
FORMULA = "QLoRA's formula in plain torch, fp64"

needs_bitsandbytes = pytest.fixture(scope="module")(
    lambda: pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
)


def table_of_values() -> Tensor:
    """QLoRA, appendix E: quantiles of the normal distribution, eight of each sign and zero."""
    from scipy.stats import norm

    last = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))
    positive = norm.ppf(torch.linspace(last, 0.5, 9, dtype=torch.float64)[:-1].numpy())
    negative = -norm.ppf(torch.linspace(last, 0.5, 8, dtype=torch.float64)[:-1].numpy())
    values = torch.tensor([*positive, 0, *negative], dtype=torch.float64).sort().values
    return values / values.max()


def rounded(matrix: Tensor) -> Tensor:
    """By the formula: blocks of 64 along rows, each number times the largest magnitude's inverse,
    to the nearest value."""
    blocks = matrix.double().unflatten(1, (-1, 64))
    scale = blocks.abs().amax(-1, keepdim=True)
    values = table_of_values()
    nearest = (blocks / scale)[..., None].sub(values).abs().argmin(-1)
    return (values[nearest] * scale).flatten(1)


@pytest.mark.usefixtures("needs_bitsandbytes")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_matrices_have_the_values_of_the_formula(dtype: torch.dtype, measure):
    from nvlm.model.parts.nf4 import Nf4Matrix

    matrix = torch.randn(96, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = Nf4Matrix(matrix)
    assert packed.packed.numel() == 96 * 192 / 2
    found, expected = packed.unpacked(), rounded(matrix)
    assert found.dtype == dtype
    assert (found - matrix).abs().max() > 0.1, "it is 4 bits"
    error = ((found - expected).norm() / expected.norm()).item()
    bound = 1e-6 if dtype == torch.float32 else 2**-8  # of a value, a rounding
    measure(f"numbers of a matrix in NF4, {dtype}", FORMULA, error, bound)
    assert torch.equal(Nf4Matrix(found).unpacked(), found), "a second rounding changes nothing"
    half = Nf4Matrix(matrix[:, 64:]).unpacked()
    assert torch.equal(half, found[:, 64:]), "a rank's part of the rows is rounded alike"


@pytest.mark.usefixtures("needs_bitsandbytes")
def test_losses_and_gradients_are_those_of_the_formula(parallel, measure):
    from nvlm.model.parts.nf4 import pack_matrices, round_matrices
    from nvlm.train.freezing import freeze

    config = small_model.small_config(NF4, LOCAL, "stage.freeze=[vision_model.*]")
    found = []
    for is_packed in (True, False):
        chunks = small_model.build_chunks(config, parallel)
        (model,) = chunks
        freeze(chunks, config, parallel)
        if is_packed:
            round_matrices(model, config)
            pack_matrices(model, config)
        else:
            with torch.no_grad():
                for adapter in quantized(config):
                    weight = model.get_submodule(adapter.module).weight
                    weight.copy_(rounded(weight))
        loss = model(small_model.batch(config, 1, [60, 20], num_tiles=2))
        loss.mean().backward()
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (loss, gradients), (expected, truth) = found
    assert gradients.keys() == truth.keys() and len(gradients) == 2 * (2 * 4) + 3 * 2
    error = ((loss - expected).norm() / expected.norm()).item()
    measure("losses with matrices in NF4", FORMULA, error, 1e-5)
    errors = {n: ((gradients[n] - g).norm() / g.norm()).item() for n, g in truth.items()}
    measure("gradients of the worst adapter beside NF4", FORMULA, max(errors.values()), 1e-5)


@pytest.mark.usefixtures("needs_bitsandbytes")
def test_a_checkpoint_has_the_values(parallel, tmp_path: Path):
    """Any model reads it, and packing it again loses nothing."""
    from nvlm.checkpoint_io import write_checkpoint
    from nvlm.model.nvlm_d import build_model
    from nvlm.model.parts.nf4 import pack_matrices, round_matrices
    from nvlm.train.checkpoint import load_weights
    from nvlm.train.freezing import freeze

    config = small_model.small_config(NF4, LOCAL)
    model = small_model.build(config, parallel)
    freeze([model], config, parallel)
    round_matrices(model, config)
    before = {a.module: model.get_submodule(a.module).weight.clone() for a in quantized(config)}
    pack_matrices(model, config)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", model.sharded_state_dict(), config)
    other = build_model(changed(config, {"stage.adapters": {}}), parallel)
    load_weights(checkpoint, [other], parallel)
    assert len(before) == 4 * 2 + 2
    for name, matrix in before.items():
        assert torch.equal(other.get_submodule(name).weight, matrix), name


@pytest.mark.slow
@pytest.mark.usefixtures("needs_bitsandbytes")
def test_a_run_resumes_to_the_same_losses(demo_data: Path, tmp_path: Path):
    from nvlm.train.fit import train

    train(stage_config("pretrain", demo_data, tmp_path, "random"))
    load, own = str(tmp_path / "pretrain"), (NF4, LOCAL)
    more = f"train.steps={STEPS + 1}", "train.schedule.decay_steps=99"
    train(stage_config("sft", demo_data, tmp_path / "whole", load, *own, *more))
    expected = [record["loss"] for record in spawn.metrics(tmp_path / "whole/sft")]
    train(stage_config("sft", demo_data, tmp_path / "again", load, *own, *more[1:]))
    train(stage_config("sft", demo_data, tmp_path / "again", load, *own, *more))
    assert [record["loss"] for record in spawn.metrics(tmp_path / "again/sft")] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    {
        (LOCAL, "parallel.tensor=2"): "have 96 numbers on a process, which are no whole blocks",
        (): r"does not go with model\.layer_implementation auto",
        (LOCAL, "stage.freeze=['!*linear_fc1*']"): "lets the matrix itself train",
        (
            LOCAL,
            "train.fp8.recipe=tensorwise",
            "train.precision=bf16",
        ): "not go with train.fp8",
    }.items(),
)
def test_what_does_not_go_with_4_bits_is_refused(settings: tuple[str, ...], message: str):
    from nvlm.train.patterns import check_patterns

    with pytest.raises(ConfigError, match=message):
        check_patterns(small_model.small_config(NF4, *settings))


def test_without_bitsandbytes_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    from nvlm.train import patterns

    monkeypatch.setattr(patterns, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes: pip install nvlm\[nf4\]"):
        patterns.check_patterns(small_model.small_config(NF4, LOCAL))
