"""Each switch of the decoder has the losses and gradients of one process at every layout.

Weights of image tokens' own also step alike, and go on from the checkpoints of other layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import layout_runs, layout_steps, switch_steps
from helpers.layout_runs import Layouts, short_and_long
from helpers.layout_steps import RESUMED, STEPS
from helpers.switch_steps import FROZEN, SAVED, SWITCHES, StepsWithImages
from torch import Tensor

NUM_PROCESSES = 4
LAYOUTS = {
    "TP2 + SP x PP2": ["parallel.tensor=2", "parallel.sequence=true", "parallel.pipeline=2"],
}
LONG_LAYOUTS = {
    "TP2 x DP2": ["parallel.tensor=2"],
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
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("switches")


@pytest.fixture(scope="module")
def single_steps(parallel, folder) -> dict[str, dict]:
    """Two steps of one process, whose checkpoints the first layout goes on with."""
    run, found = folder / layout_steps.SINGLE, {}
    for switch in SAVED:
        config = switch_steps.saved_config(switch, run)
        found[switch] = layout_steps.two_steps(config, parallel, True, StepsWithImages)
    return found


@pytest.fixture(scope="module")
def results_of(single, single_steps, folder) -> Callable[[str], list[dict]]:
    """Layout -> the results of each rank. All that train the encoder checkpoint, the first goes on
    with one process's."""
    trained = LAYOUTS, LONG_LAYOUTS
    jobs = *(Layouts(layouts, [*layouts]) for layouts in trained), Layouts(FROZEN, [])
    return layout_runs.reader(switch_steps.__file__, NUM_PROCESSES, folder, *jobs)


def relative_error(found: Tensor, expected: Tensor) -> float:
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.abs().max())


@pytest.mark.parallel
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, {**LONG_LAYOUTS, **FROZEN}))
def test_layout_equals_one_process(layout, switch, single, results_of, measure):
    results = [result[switch] for result in results_of(layout)]
    found, expected = layout_steps.assemble(results), layout_steps.assemble([single[switch]])
    if layout in FROZEN:
        expected = {key: expected[key] for key in expected if "vision_model." not in key[0]}
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


@pytest.mark.parallel
@pytest.mark.parametrize("switch", SAVED)
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, LONG_LAYOUTS))
def test_checkpoints_of_other_layouts_go_on(layout, switch, single_steps, results_of, measure):
    expected = layout_steps.assemble([single_steps[switch]])
    assert any(".visual_" in key and bool(change.any()) for (key, _), change in expected.items())
    for case in (STEPS, RESUMED):
        found = layout_steps.assemble([rank[switch, case] for rank in results_of(layout)])
        worst = layout_steps.worst_change(found, expected)
        measure(f"change of weights, {switch}, {layout}, {case}", "one process", worst, 1e-4)


@pytest.mark.parallel
@pytest.mark.parametrize("switch", SAVED)
def test_one_process_goes_on(switch, single_steps, results_of, parallel, folder, measure):
    layout = list(LAYOUTS)[-1]
    results_of(layout)
    expected = layout_steps.assemble([single_steps[switch]])
    run, config = folder / layout, switch_steps.saved_config(switch, folder / "again")
    alone = layout_steps.second_step(config, parallel, run / switch, StepsWithImages)
    worst = layout_steps.worst_change(layout_steps.assemble([alone]), expected)
    measure(f"change of weights, {switch}, resumed by one process", "one process", worst, 1e-4)


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_has_a_gradient(switch, single):
    """Of the last layer only what text sees of images: nothing is trained at image tokens."""
    last = switch_steps.config_of(switch).model.language.num_layers - 1
    unseen = ("q_layernorm", "linear_proj", "pre_mlp_layernorm", "linear_fc1", "linear_fc2")
    for (key, layer), gradient in layout_steps.assemble([single[switch]]).items():
        is_unseen = ".visual_" in key and layer == last and key.split(".")[-2] in unseen
        assert bool(gradient.any()) != is_unseen, (switch, key, layer)
