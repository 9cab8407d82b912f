"""8-bit training's settings and factors: what modules get, what checkpoints hold.

Without a GPU Transformer Engine's own Python runs, without 8-bit products (helpers/fp8_steps.py).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import fp8_steps, layout_steps, small_model, spawn
from helpers.fp8_steps import number_of
from helpers.paths import REPOSITORY
from helpers.transformer_engine_steps import SOURCES

VERSION = "2.11.0"
MATRICES = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)

needs_stub = pytest.mark.skipif(
    torch.cuda.is_available() or not (SOURCES / VERSION).is_dir(),
    reason="needs Transformer Engine's Python (scripts/fetch_transformer_engine), and no GPU",
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """Results of both processes of `fp8_steps`."""
    folder: Path = tmp_path_factory.mktemp("fp8")
    environment = spawn.environment()
    environment["PYTHONPATH"] = f"{SOURCES / VERSION}{os.pathsep}{environment['PYTHONPATH']}"
    finished = subprocess.run(
        [sys.executable, fp8_steps.__file__, VERSION, str(folder)],
        timeout=240,
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-20000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def keys_of(layers) -> set[str]:
    return {
        f"language_model.decoder.layers.{layer}.{matrix}.fp8.{what}_{direction}"
        for layer in layers
        for matrix in MATRICES
        for what in ("scale", "amax_history")
        for direction in ("fwd", "bwd")
    }


@needs_stub
@pytest.mark.parallel
def test_factors_are_saved_once_and_read_at_another_layout(ranks):
    """Written at TP2, read at PP2."""
    for number, rank in enumerate(ranks):
        assert rank["written"].keys() == keys_of([0, 1])
        assert rank["read"].keys() == keys_of([number])
        for key, values in rank["read"].items():
            assert values.shape == rank["written"][key].shape
            assert (values == number_of(key)).all(), key
    history = ranks[0]["written"][f"language_model.decoder.layers.1.{MATRICES[0]}.fp8."
                                  "amax_history_fwd"]  # fmt: skip
    assert history.shape == (3, 3)  # amax_history_len, and input, weight and output


@needs_stub
@pytest.mark.parallel
def test_a_run_may_go_on_in_8_bits(ranks):
    """From a checkpoint without factors: they are as new ones, and that is said once."""
    for rank in ranks:
        for key, values in rank["begun"].items():
            assert (values == (1 if "scale" in key else 0)).all(), key
    said = [rank["said"] for rank in ranks]
    assert "has no scaling factors of FP8: they begin anew" in said[0]
    assert not said[1]


@needs_stub
@pytest.mark.parallel
def test_settings_reach_the_decoders_linear_layers_and_no_others(ranks):
    found = ranks[0]["described"]
    assert {name: one["recipe"] for name, one in found.items()} == {
        "delayed": "DelayedScaling",
        "tensorwise": "Float8CurrentScaling",
        "blockwise": "Float8BlockScaling",
    }
    assert found["delayed"]["settings"] == {
        "fp8_format": "Format.E4M3",
        "margin": "2",
        "amax_history_len": "3",
        "amax_compute_algo": "max",
    }
    assert found["tensorwise"]["settings"]["fp8_format"] == "Format.HYBRID"
    for name, one in found.items():
        # The step goes as far as the first 8-bit kernel, through the encoder and the projector.
        assert "the stub has no such kernel" in one["stopped at"], name
        assert one["others"] == [None, None]
    assert found["delayed"]["linears with factors"] == {
        f"language_model.decoder.layers.{layer}.{matrix}"
        for layer in range(2)
        for matrix in MATRICES
    }
    # What these tensors are kept beside: a pickle, which would be read as one.
    assert found["delayed"]["extra state"][:1] == b"\x80"


needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available()
    or torch.cuda.get_device_capability() < (9, 0)
    or importlib.util.find_spec("transformer_engine") is None,
    reason="needs a GPU of sm90 or later and Transformer Engine",
)


@pytest.mark.gpu
@needs_fp8
@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise"])
def test_steps_in_8_bits(recipe, parallel, measure):
    losses = {}
    for name in ("none", recipe):
        config = small_model.small_config(
            "train.precision=bf16",
            "model.layer_implementation=transformer_engine",
            f"train.fp8.recipe={name}",
            "stage.freeze=['vision_model.*']",
        )
        run = layout_steps.TwoSteps(config, parallel)
        run.take()
        run.take()
        losses[name] = float(run.losses[2][0])
    error = abs(losses[recipe] - losses["none"]) / losses["none"]
    # Three bits of mantissa, in two layers; a bound by that, not by measurement.
    measure(f"loss of the second step, FP8 {recipe}", "bf16", error, 5e-2)
