"""Parts of which every tensor-parallel rank has all: their gradients are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import layout_runs, layout_steps, part_steps

LAYOUTS = {
    "TP2": ["parallel.tensor=2"],
    "TP2 + SP": ["parallel.tensor=2", "parallel.sequence=true"],
}


@pytest.fixture(scope="module")
def results(parallel, tmp_path_factory) -> dict[str, list[dict]]:
    """Layout -> what each rank has of every case."""
    folder: Path = tmp_path_factory.mktemp("parts")
    by_layout = layout_runs.by_layout(part_steps.__file__, 2, folder, LAYOUTS)
    return {"one process": [part_steps.results_of([])], **by_layout}


@pytest.mark.parallel
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", part_steps.CASES)
def test_gradients_equal_those_of_one_process(case, layout, results, measure):
    found = [result[case] for result in results[layout]]
    expected = results["one process"][0][case]
    for result in found:
        for number, losses in expected["losses"].items():
            torch.testing.assert_close(result["losses"][number], losses, rtol=1e-5, atol=1e-5)
    # Copies on two ranks that were no copies would be noticed in here.
    tensors, truth = layout_steps.assemble(found), layout_steps.assemble([expected])
    assert tensors.keys() == truth.keys()
    worst = max(float((tensors[key] - truth[key]).norm() / truth[key].norm()) for key in truth)
    measure(f"gradients of the worst tensor, {layout}, {case}", "one process", worst, 1e-5)


@pytest.mark.parallel
def test_copies_are_equal_to_the_last_bit(results):
    for layout in LAYOUTS:
        for case in part_steps.CASES:
            shards = [
                {s[0]: s[4] for s in result[case]["tensors"] if s[0].startswith("vision_proj")}
                for result in results[layout]
            ]
            assert shards[0]
            for key, gradient in shards[0].items():
                assert torch.equal(gradient, shards[1][key]), (layout, case, key)
