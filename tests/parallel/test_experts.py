"""Experts shared among processes: the same losses, gradients and weights as in one process.

Also the routers' losses, which count each token once whoever has it, and no padding.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import expert_steps, layout_steps, spawn
from helpers.expert_steps import ADAPTED, GRADIENTS, RESUMED, STEPS
from helpers.layout_steps import SINGLE

from nvlm.parallel.groups import initialize

# By the number of processes; each layout resumes the checkpoint of the one before, the first that
# of one process.
LAYOUTS = {
    2: {"EP2 x DP2": ["parallel.expert=2"]},
    4: {
        "TP2 + SP x DP2, EP2 over tensor ranks": [
            "parallel.tensor=2",
            "parallel.sequence=true",
            "parallel.expert=2",
        ],
        "TP2 + SP x DP2, EP4 over all": [
            "parallel.tensor=2",
            "parallel.sequence=true",
            "parallel.expert=4",
        ],
        "TP2 + SP x DP2, EP1": ["parallel.tensor=2", "parallel.sequence=true"],
        "EP2 x DP4": ["parallel.expert=2"],
        "CP2 x EP2 x DP2": ["parallel.context=2", "parallel.expert=2"],
        "PP2 x EP2 x DP2, recomputed": [
            "parallel.pipeline=2",
            "parallel.expert=2",
            "train.recompute.language.granularity=full",
        ],
        "PP2 x VPP2 x EP2 x DP2, partly recomputed": [
            "parallel.pipeline=2",
            "parallel.virtual_pipeline=2",
            "parallel.expert=2",
            "train.recompute.language.granularity=selective",
        ],
        "CP2 x DP2, EP4": ["parallel.context=2", "parallel.expert=4"],
        "PP4, two stages without experts": ["parallel.pipeline=4"],
    },
}
CASES = [
    pytest.param(size, layout, marks=[pytest.mark.slow] if size > 2 else [])
    for size, layouts in LAYOUTS.items()
    for layout in layouts
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def single(parallel, folder) -> dict:
    return expert_steps.all_cases([], save_to=folder / SINGLE)


@pytest.fixture(scope="module")
def results_of(single, folder):
    """The results of each rank, of a layout of so many processes."""
    ended: dict[int, int] = {}  # a program that failed is not run again

    def run(size: int, layout: str) -> list[dict]:
        log = folder / f"log{size}"
        if size not in ended:
            program = (expert_steps.__file__, folder, json.dumps(LAYOUTS[size]))
            ended[size] = 1
            ended[size] = spawn.run_program(size, *program, log=log, timeout_seconds=300)
        assert ended[size] == 0, log.read_text()[-20000:]
        paths = [folder / f"{layout} rank{rank}.pt" for rank in range(size)]
        return [torch.load(path, weights_only=False) for path in paths]

    return run


@pytest.mark.parallel
@pytest.mark.parametrize(("size", "layout"), CASES)
def test_layout_equals_one_process(size, layout, single, results_of, measure):
    by_rank = results_of(size, layout)
    for case, bound in ((GRADIENTS, 1e-5), (ADAPTED, 1e-5), (STEPS, 1e-4)):
        found = layout_steps.assemble([result[case] for result in by_rank])
        assert case != ADAPTED or any(".adapter." in key for key, _ in found)
        worst = worst_error(found, layout_steps.assemble([single[case]]))
        measure(f"{case} of the worst tensor, {layout}", "one process", worst, bound)
        losses = {}
        for result in by_rank:
            losses.update(result[case]["losses"])
        worst = worst_error(losses, single[case]["losses"])
        measure(f"losses of {case}, {layout}", "one process", worst, 1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize(("size", "layout"), CASES)
def test_checkpoint_of_another_layout_goes_on(size, layout, single, results_of, measure):
    """Of the layout before, or of one process; and back to one process."""
    expected = layout_steps.assemble([single[STEPS]])
    found = layout_steps.assemble([result[RESUMED] for result in results_of(size, layout)])
    worst = worst_error(found, expected)
    measure(f"change of weights after resuming, {layout}", "one process", worst, 1e-4)


@pytest.mark.parallel
@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_one_process_goes_on_from_shared_experts(size, single, results_of, folder, measure):
    layout = [*LAYOUTS[size]][-1]
    results_of(size, layout)
    config = expert_steps.config_of()
    parallel = initialize(config, world_size=1)
    result = layout_steps.second_step(config, parallel, folder / layout, expert_steps.Steps)
    worst = worst_error(layout_steps.assemble([result]), layout_steps.assemble([single[STEPS]]))
    measure(f"change of weights after resuming {layout}, one process", "one process", worst, 1e-4)


def worst_error(found: dict, expected: dict) -> float:
    assert found.keys() == expected.keys()
    return max(
        float((found[key] - value).norm()) / max(float(value.norm()), 1e-12)
        for key, value in expected.items()
    )


@pytest.mark.parallel
def test_every_parameter_has_a_gradient(single):
    for key, gradient in layout_steps.assemble([single[GRADIENTS]]).items():
        assert gradient.norm() > 0, key
