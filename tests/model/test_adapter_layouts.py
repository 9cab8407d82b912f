"""Adapters' losses, gradients and steps at every layout: one process is the truth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import adapter_steps, layout_steps, spawn
from helpers.adapter_steps import RESUMED, STEPS

LAYOUTS = {
    2: {
        "TP2 + SP": ["parallel.tensor=2", "parallel.sequence=true"],
        "PP2": ["parallel.pipeline=2"],
    },
    4: {
        "TP4 + SP": ["parallel.tensor=4", "parallel.sequence=true"],
        "TP2 x DP2": ["parallel.tensor=2"],
        "TP2 x CP2": ["parallel.tensor=2", "parallel.context=2"],
        "TP2 + SP x PP2 x VPP2, recomputed": [
            "parallel.tensor=2",
            "parallel.sequence=true",
            "parallel.pipeline=2",
            "parallel.virtual_pipeline=2",
            "train.recompute.vision.granularity=full",
            "train.recompute.language.granularity=full",
        ],
    },
}
PLACES = [
    pytest.param(2, marks=pytest.mark.parallel),
    pytest.param(4, marks=[pytest.mark.parallel, pytest.mark.slow]),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def single(parallel, folder) -> dict:
    return adapter_steps.all_cases([], save_to=folder / layout_steps.SINGLE)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert expected.norm() > 0
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("num_processes", PLACES)
def test_layouts_equal_one_process(num_processes, single, folder, measure):
    layouts = LAYOUTS[num_processes]
    program = (adapter_steps.__file__, folder, json.dumps(layouts))
    spawn.run_program_or_fail(num_processes, *program, log=folder / f"log{num_processes}")
    for layout in layouts:
        ranks = [
            torch.load(folder / f"{layout} rank{rank}.pt", weights_only=False)
            for rank in range(num_processes)
        ]
        for case in ranks[0]:  # in 4 bits too, where bitsandbytes is
            assert {"LoRA", "DoRA", STEPS, RESUMED} <= ranks[0].keys()
            truth = single[STEPS if case == RESUMED else case]
            results = [rank[case] for rank in ranks]
            found, expected = layout_steps.assemble(results), layout_steps.assemble([truth])
            assert found.keys() == expected.keys() and all(".adapter." in key for key, _ in found)
            worst = max(relative_error(found[key], expected[key]) for key in expected)
            # Rounding of a weight by the size of its change, as in test_model_layouts.
            bound = 1e-4 if case in (STEPS, RESUMED) else 1e-5
            measure(f"adapters of the worst tensor, {layout}, {case}", "one process", worst, bound)
            if case == RESUMED:
                continue
            losses = {key: loss for rank in results for key, loss in rank["losses"].items()}
            assert losses.keys() == truth["losses"].keys()
            worst = max(relative_error(losses[key], truth["losses"][key]) for key in losses)
            measure(f"losses, {layout}, {case}", "one process", worst, 1e-5)
