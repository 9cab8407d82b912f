"""Rows whose tokens processes share: the same losses, gradients and weights as on one process.

Documents are of lengths that have to be padded; images stand in rows of one rank's tokens only, or
cross from one rank's to the other's.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import context_steps, layout_runs, layout_steps, spawn
from helpers.layout_steps import RESUMED, STEPS

LAYOUTS = {
    "CP2 x DP2": ["parallel.context=2"],
    "CP4": ["parallel.context=4"],
    "TP2 + SP x CP2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.context=2"],
    "PP2 x CP2": ["parallel.pipeline=2", "parallel.context=2"],
    "PP2 x VPP2 x CP2, recomputed": [
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "parallel.context=2",
        "stage.freeze=[]",
        "train.recompute.vision.granularity=full",
        "train.recompute.language.granularity=full",
    ],
    "CP2 x DP2, core attention recomputed": [
        "parallel.context=2",
        "train.recompute.language.granularity=selective",
    ],
}
# Each takes the second step from its predecessor's checkpoint, the first from one process's.
CHECKPOINTING = ["CP2 x DP2", "CP4", "TP2 + SP x CP2", "PP2 x CP2"]


@pytest.mark.parallel
def test_two_processes_share_rows(parallel, tmp_path, measure):
    single = context_steps.all_cases([])
    spawn.run_program_or_fail(
        2, context_steps.__file__, tmp_path, "parallel.context=2", log=tmp_path / "log"
    )
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    for case, truth in single.items():
        compare("CP2", case, [result[case] for result in results], truth, measure)


def compare(layout: str, case: str, results: list[dict], truth: dict, measure) -> None:
    tensors, expected = layout_steps.assemble(results), layout_steps.assemble([truth])
    assert tensors.keys() == expected.keys()
    worst = max(relative_error(tensors[key], expected[key]) for key in expected)
    # As in test_model_layouts.py: of a change of 1e-3, a rounding of the weight is 6e-5.
    is_change = case in (STEPS, RESUMED)
    kind, bound = ("changes", 1e-4) if is_change else ("gradients", 1e-5)
    measure(f"{kind} of the worst tensor, {layout}, {case}", "one process", worst, bound)
    losses: dict = {}
    for result in results:
        losses.update(result["losses"])
    worst = max(relative_error(losses[key], truth["losses"][key]) for key in losses)
    measure(f"losses, {layout}, {case}", "one process", worst, 1e-5)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.abs().max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def single(parallel, folder) -> dict:
    return layout_steps.all_cases([], save_to=folder / layout_steps.SINGLE)


@pytest.fixture(scope="module")
def by_layout(single, folder) -> dict[str, list[dict]]:
    """Layout -> the results of each rank."""
    checkpointing = json.dumps(CHECKPOINTING)
    return layout_runs.by_layout(layout_steps.__file__, 4, folder, LAYOUTS, checkpointing)


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_one_process(layout, single, by_layout, measure):
    cases = by_layout[layout][0]
    assert (RESUMED in cases) == (layout in CHECKPOINTING)
    for case in cases:
        truth = single[STEPS if case == RESUMED else case]
        compare(layout, case, [result[case] for result in by_layout[layout]], truth, measure)


@pytest.mark.slow
@pytest.mark.parallel
def test_one_process_goes_on_from_shared_rows(by_layout, single, folder, measure):
    from nvlm.parallel.groups import initialize

    config = layout_steps.config_of(*layout_steps.SMALL, *layout_steps.OPTIMIZER)
    parallel = initialize(config, world_size=1)
    found = layout_steps.second_step(config, parallel, folder / CHECKPOINTING[-1])
    compare("one process", RESUMED, [found], single[STEPS], measure)
