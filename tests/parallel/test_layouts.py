"""One run, many process layouts: the same losses, gradient norms and data order.

The single process is the truth. Its losses are kept in tests/golden; `helpers/golden_run.py`
rewrites them after an intended change.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.golden_run import GOLDEN, NUM_STEPS, train_tiny

# The layouts stop earlier: all ten are warm-up, so the rates are the same.
LAYOUT_STEPS = 3

LAYOUTS = {
    "tensor2-sequence": (2, ["parallel.tensor=2", "parallel.sequence=true"]),
    "data2": (2, []),
    "tensor2-pipeline2-tiles": (
        4,
        ["parallel.tensor=2", "parallel.pipeline=2", "parallel.vision=tile_parallel"],
    ),
}
LONG_LAYOUTS = {
    "pipeline2": (2, ["parallel.pipeline=2"]),
    "pipeline2-virtual2": (2, ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]),
    "pipeline4-auto": (4, ["parallel.pipeline=4", "parallel.layout=auto"]),
    "context2": (2, ["parallel.context=2"]),
    "tensor2-context2": (
        4,
        ["parallel.tensor=2", "parallel.sequence=true", "parallel.context=2"],
    ),
}


@pytest.fixture(scope="module")
def single_process(demo_data: Path, tmp_path_factory) -> list[dict]:
    return train_tiny(tmp_path_factory.mktemp("single") / "run", demo_data, 1, [])


@pytest.mark.parallel
def test_single_process_matches_golden(single_process, measure):
    golden = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert len(golden) == NUM_STEPS
    for found, expected in zip(single_process, golden, strict=True):
        assert found["step"] == expected["step"]
        assert found["tokens"] == expected["tokens"]
    # 0 on the machine that wrote it; other CPUs round matrix products differently.
    errors = largest_errors(single_process, golden)
    measure("loss of a step, one process", "golden losses", errors["loss"], 1e-4)
    measure("gradient norm of a step, one process", "golden losses", errors["grad_norm"], 1e-3)


@pytest.mark.parallel
@pytest.mark.parametrize(
    "layout", [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG_LAYOUTS)]
)
def test_layout_equals_single_process(layout, single_process, demo_data, tmp_path, measure):
    num_processes, overrides = {**LAYOUTS, **LONG_LAYOUTS}[layout]
    found = train_tiny(tmp_path / "run", demo_data, num_processes, overrides, LAYOUT_STEPS)
    assert len(found) == LAYOUT_STEPS
    truths = single_process[:LAYOUT_STEPS]
    for ours, truth in zip(found, truths, strict=True):
        # The samples of a step, their tokens and tiles: the order is the same.
        assert [ours[key] for key in ("step", "tokens", "tiles", "samples")] == [
            truth[key] for key in ("step", "tokens", "tiles", "samples")
        ]
    errors = largest_errors(found, truths)
    measure(f"loss of a step, {layout}", "one process", errors["loss"], 1e-5)
    measure(f"gradient norm of a step, {layout}", "one process", errors["grad_norm"], 1e-4)


def largest_errors(found: list[dict], expected: list[dict]) -> dict[str, float]:
    """The largest relative error of any step."""
    return {
        key: max(
            abs(ours[key] - truth[key]) / abs(truth[key])
            for ours, truth in zip(found, expected, strict=True)
        )
        for key in ("loss", "grad_norm")
    }
