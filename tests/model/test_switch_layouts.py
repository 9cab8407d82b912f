"""Each switch of the decoder has the losses and gradients of one process at every layout."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import layout_steps, spawn, switch_steps
from helpers.switch_steps import SWITCHES
from torch import Tensor

NUM_PROCESSES = 4
LAYOUTS = {
    "TP2 x DP2": ["parallel.tensor=2"],
    "TP2 + SP x PP2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"],
    "PP2 x VPP2 x DP2, recomputed": [
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "train.recompute.language.granularity=full",
    ],
}


@pytest.fixture(scope="module")
def single(parallel) -> dict:
    return switch_steps.all_cases([])


@pytest.fixture(scope="module")
def by_layout(single, tmp_path_factory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("switches")
    program = (switch_steps.__file__, folder, json.dumps(LAYOUTS))
    spawn.run_program_or_fail(NUM_PROCESSES, *program, log=folder / "log")
    return {
        name: [
            torch.load(folder / f"{name} rank{rank}.pt", weights_only=False)
            for rank in range(NUM_PROCESSES)
        ]
        for name in LAYOUTS
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.abs().max())


@pytest.mark.parallel
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_process(layout, switch, single, by_layout, measure):
    results = [result[switch] for result in by_layout[layout]]
    found, expected = layout_steps.assemble(results), layout_steps.assemble([single[switch]])
    assert found.keys() == expected.keys()
    worst = max(relative_error(found[key], expected[key]) for key in expected)
    measure(f"gradients of the worst tensor, {switch}, {layout}", "one process", worst, 1e-5)
    losses: dict[int, Tensor] = {}
    for result in results:
        losses.update(result["losses"])
    wanted = single[switch]["losses"]
    assert losses.keys() == wanted.keys()
    worst = max(relative_error(losses[key], wanted[key]) for key in wanted)
    measure(f"losses per token, {switch}, {layout}", "one process", worst, 1e-5)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_has_a_gradient(switch, single):
    """Of the last layer only what text sees of images: nothing is trained at image tokens."""
    last = switch_steps.config_of(switch).model.language.num_layers - 1
    unseen = ("q_layernorm", "linear_proj", "pre_mlp_layernorm", "linear_fc1", "linear_fc2")
    for (key, layer), gradient in layout_steps.assemble([single[switch]]).items():
        is_unseen = ".visual_" in key and layer == last and key.split(".")[-2] in unseen
        assert bool(gradient.any()) != is_unseen, (switch, key, layer)
