"""Tiles encoded by all processes of a replica: the steps are those of the `tensor` placement.

One process with `parallel.vision: tensor` is the truth. Four others go through layouts with
`tile_parallel`; a step has 5 tiles, so that shares differ, and data ranks without any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import layout_runs, layout_steps, small_model, tile_steps
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.layout_runs import Layouts, short_and_long
from helpers.tile_steps import GRADIENTS, RESUMED, STEPS

from nvlm.model import visual
from nvlm.parallel.groups import initialize

NUM_PROCESSES = 4
LAYOUTS = {
    "TP2 x DP2": ["parallel.tensor=2"],
    "TP2 + SP x PP2 x VPP2, recomputed": [
        "parallel.tensor=2",
        "parallel.sequence=true",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "train.recompute.language.granularity=full",
    ],
}
# More ranks of one kind.
LONG_LAYOUTS = {
    "TP2 x PP2": ["parallel.tensor=2", "parallel.pipeline=2"],
    "DP4": [],
    "TP4 + SP": ["parallel.tensor=4", "parallel.sequence=true"],
    "PP2 x DP2": ["parallel.pipeline=2"],
}
# Each takes the second step from its predecessor's checkpoint, the first from one process's.
CHECKPOINTING = ["TP2 + SP x PP2 x VPP2, recomputed"]
LONG_CHECKPOINTING = ["TP2 x PP2", "TP4 + SP"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tiles")


@pytest.fixture(scope="module")
def single(parallel, folder) -> dict:
    return tile_steps.all_cases([], folder / layout_steps.SINGLE)


@pytest.fixture(scope="module")
def results_of(single, folder) -> Callable[[str], list[dict]]:
    """Layout -> the results of each rank."""
    jobs = Layouts(LAYOUTS, CHECKPOINTING), Layouts(LONG_LAYOUTS, LONG_CHECKPOINTING)
    return layout_runs.reader(tile_steps.__file__, NUM_PROCESSES, folder, *jobs)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    size = float(expected.norm())
    return float((found - expected).norm()) / size if size else float(found.abs().max())


def worst_errors(results: list[dict], expected: dict) -> tuple[float, float]:
    """Of the losses (per token, or of a step) and of the tensors, relative to one process."""
    losses: dict = {}
    for result in results:
        losses.update(result["losses"])
    if len(expected["losses"]) > len(losses):  # resumed: the second step only
        losses = {**expected["losses"], **losses}
    assert losses.keys() == expected["losses"].keys()
    tensors, truth = layout_steps.assemble(results), layout_steps.assemble([expected])
    assert tensors.keys() == truth.keys()
    assert not any(key.startswith("vision_model.") for key, _ in truth)
    return (
        max(relative_error(losses[key], expected["losses"][key]) for key in losses),
        max(relative_error(tensors[key], truth[key]) for key in truth),
    )


@pytest.mark.parallel
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, LONG_LAYOUTS))
def test_shared_tiles_change_nothing(layout, single, results_of, measure):
    results = results_of(layout)
    # What is compared -> its largest error and bound. Sums over tensor ranks are rounded to bf16; a
    # step moves a norm's weight, which is about 1, by 1e-3.
    bounds = {"losses": 1e-5, "gradients": 1e-5, "losses, bf16": 1e-3, "gradients, bf16": 5e-2}
    checkpoints = layout in [*CHECKPOINTING, *LONG_CHECKPOINTING]
    if checkpoints:
        bounds |= {"changes of weights": 1e-4}
    worst = dict.fromkeys(bounds, 0.0)
    for case in [*GRADIENTS, *([STEPS, RESUMED] if checkpoints else [])]:
        expected = single[STEPS if case == RESUMED else case]
        loss, tensor = worst_errors([result[case] for result in results], expected)
        half = ", bf16" if case == "bf16" else ""
        kind = "changes of weights" if case in (STEPS, RESUMED) else f"gradients{half}"
        worst[f"losses{half}"] = max(worst[f"losses{half}"], loss)
        worst[kind] = max(worst[kind], tensor)
    for what, bound in bounds.items():
        measure(f"{what}, worst tensor, tile_parallel {layout}", "one process", worst[what], bound)


@pytest.mark.parallel
def test_tensor_placement_goes_on_from_shared_tiles(single, results_of, folder, measure):
    results_of(CHECKPOINTING[-1])
    config = layout_steps.config_of(*layout_steps.OPTIMIZER, *tile_steps.FROZEN)
    parallel = initialize(config, world_size=1)
    resumed = layout_steps.second_step(config, parallel, folder / CHECKPOINTING[-1])
    _, change = worst_errors([resumed], single[STEPS])
    measure("change of weights after resuming tile_parallel", "one process", change, 1e-4)


@pytest.mark.parallel
def test_the_encoder_is_saved_once_and_whole(single, results_of, folder):
    results_of(CHECKPOINTING[-1])
    theirs = checkpoint_tensors(folder / CHECKPOINTING[-1] / "checkpoints" / "latest")
    ours = checkpoint_tensors(folder / layout_steps.SINGLE / "checkpoints" / "latest")
    assert {key: value.shape for key, value in theirs.items()} == {
        key: value.shape for key, value in ours.items()
    }
    of_encoder = [key for key in ours if key.startswith("vision_model.")]
    assert of_encoder
    assert all(torch.equal(theirs[key], ours[key]) for key in of_encoder)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", short_and_long(CHECKPOINTING, LONG_CHECKPOINTING))
def test_the_encoder_is_read_once_by_all_together(layout, results_of):
    """And sent to all: each had values that are no numbers before, and is compared above."""
    read = [
        [place for place in result[RESUMED]["read"] if place[0].startswith("vision_model.")]
        for result in results_of(layout)
    ]
    times = Counter(place for of_rank in read for place in of_rank)
    assert set(times.values()) == {1}
    assert all(read)


def test_many_tiles_go_through_the_encoder_in_parts(parallel, measure):
    config = layout_steps.config_of(*tile_steps.SHARED, *tile_steps.FROZEN)
    model = small_model.build(config, parallel)
    layout_steps.freeze([model], config, parallel)
    num_tiles = 2 * visual.MAX_TILES_PER_CALL + 3
    tiles = small_model.batch(config, 1, [16 * num_tiles + 40], num_tiles).tiles
    calls = []
    model.vision_model.register_forward_hook(lambda _, inputs, out: calls.append(len(inputs[0])))
    found = model.visual.encode(tiles)
    assert calls == [visual.MAX_TILES_PER_CALL] * 2 + [3]
    with torch.no_grad():
        expected = model.vision_model(tiles)
    assert not found.requires_grad
    measure("features in three calls", "one call", relative_error(found, expected), 1e-6)
    assert model.visual.encode(tiles[:0]).shape == (0, *found.shape[1:])
