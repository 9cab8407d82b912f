"""Encoders of which every tensor-parallel rank has all, and one beside an InternViT: gradients are
those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import encoder_steps, layout_runs, layout_steps

LAYOUTS = {
    "TP2": ["parallel.tensor=2"],
    "TP2 + SP": ["parallel.tensor=2", "parallel.sequence=true"],
    "PP2": ["parallel.pipeline=2"],
    "DP2": [],
}


@pytest.fixture(scope="module")
def results(parallel, tmp_path_factory) -> dict[str, list[dict]]:
    """Layout -> what each rank has of every case."""
    folder: Path = tmp_path_factory.mktemp("encoders")
    single = encoder_steps.results_of([], folder / layout_steps.SINGLE)
    by_layout = layout_runs.by_layout(encoder_steps.__file__, 2, folder, LAYOUTS)
    return {"one process": [single], **by_layout}


@pytest.mark.parallel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", encoder_steps.CASES)
def test_gradients_equal_those_of_one_process(case, layout, results, measure):
    found = [result[case] for result in results[layout]]
    expected = results["one process"][0][case]
    compared = 0
    for result in found:
        for number, losses in result["losses"].items():
            torch.testing.assert_close(losses, expected["losses"][number], rtol=1e-5, atol=1e-5)
            compared += 1
    assert compared >= 4
    tensors, truth = layout_steps.assemble(found), layout_steps.assemble([expected])
    assert tensors.keys() == truth.keys()
    trains = any(key.startswith("vision_model.") for key, _ in truth)
    assert trains == (case in (encoder_steps.TRAINED, encoder_steps.BESIDE))
    worst = max(float((tensors[key] - truth[key]).norm() / truth[key].norm()) for key in truth)
    measure(f"gradients of the worst tensor, {layout}, {case}", "one process", worst, 1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", encoder_steps.CHECKPOINTING)
def test_checkpoint_of_another_layout_goes_on(layout, results, measure):
    """With two encoders: weights and the optimizer's state of both, of one process and of TP2."""
    found = [result[layout_steps.RESUMED] for result in results[layout]]
    single = results["one process"][0][layout_steps.STEPS]
    change, expected = layout_steps.assemble(found), layout_steps.assemble([single])
    assert change.keys() == expected.keys()
    assert {key.split(".")[2] for key, _ in expected if key.startswith("vision_model")} == {
        "0",
        "1",
    }
    worst = max(
        float((change[key] - expected[key]).norm() / expected[key].norm()) for key in change
    )
    measure(f"change of weights after resuming, {layout}", "one process", worst, 1e-4)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", ["TP2", "TP2 + SP"])
@pytest.mark.parametrize("case", [encoder_steps.TRAINED, encoder_steps.BESIDE])
def test_copies_are_equal_to_the_last_bit(case, layout, results):
    shards = [
        {s[0]: s[4] for s in result[case]["tensors"] if s[0].startswith("vision_")}
        for result in results[layout]
    ]
    of_encoder = [key for key in shards[0] if ".blocks." in key]
    assert of_encoder
    for key in of_encoder:
        assert torch.equal(shards[0][key], shards[1][key]), key
