"""Gradients reduced and parameters gathered beside the computation: the same steps, bit by bit.

Also where a data rank's micro-batches have no tiles while another's have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import overlap_steps, small_model, spawn
from helpers.layout_runs import short_and_long

pytestmark = pytest.mark.parallel
SHORT, LONG = list(overlap_steps.CASES)[:2], list(overlap_steps.CASES)[2:]


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> Callable[[str], list[dict]]:
    """Case -> what each rank found; the long ones have a job of their own."""
    folder = tmp_path_factory.mktemp("overlap")

    @cache
    def job(first: str) -> list[dict]:
        cases = SHORT if first in SHORT else LONG
        spawn.run_program_or_fail(
            2, overlap_steps.__file__, folder, *cases, log=folder / f"log of {first}"
        )
        return [torch.load(path) for path in sorted(Path(folder).glob(f"{first} rank*.pt"))]

    return lambda case: job(SHORT[0] if case in SHORT else LONG[0])


@pytest.mark.parametrize("case", short_and_long(SHORT, LONG))
def test_steps_are_those_without_overlap(case: str, by_rank, measure):
    steps = weights = 0.0
    for results in by_rank(case):
        without, found = results[case, False], results[case, True]
        # One bucket without overlap, however large the model is.
        assert without["most buckets"] <= 1
        # Of pipeline stages the first alone has several.
        assert found["most buckets"] > 1 or case in (
            "all but projector frozen",
            "encoder frozen, PP2 x VPP2",
            "NVLM-H, encoder frozen, PP2 x VPP2",
        )
        for step in range(overlap_steps.NUM_STEPS):
            error = (found[f"step {step}"] - without[f"step {step}"]).abs().max()
            steps = max(steps, float(error))
        for name, truth in without["parameters"].items():
            weights = max(weights, float((found["parameters"][name] - truth).abs().max()))
            assert torch.equal(found["resumed"][name], found["parameters"][name]), name
    of_what = f"of 3 steps on 2 ranks, {case}, largest difference"
    # The norm is added up over other shares of the gradients; nothing here is long enough to clip.
    measure(f"losses and gradient norms {of_what}", "without overlap", steps, 1e-5)
    measure(f"weights {of_what}", "without overlap", weights, 0)


@pytest.mark.parametrize("case", short_and_long(SHORT, LONG[:2]))
def test_all_ranks_have_the_same_parameters(case: str, by_rank):
    first, second = by_rank(case)
    found = second[case, True]["parameters"]
    for name, parameter in first[case, True]["parameters"].items():
        assert torch.equal(found[name], parameter), name


def test_bytes_that_a_tensor_parallel_rank_keeps(by_rank, measure):
    for rank, results in enumerate(by_rank(SHORT[0])):
        found, reckoned = results["kept"]
        what = f"bytes kept by rank {rank} of a tensor- and sequence-parallel pair, relative"
        measure(what, "saved-tensor hooks", abs(found - reckoned) / found, 0.05)


def test_without_tiles_the_model_needs_none(parallel):
    """Where nothing overlaps, a micro-batch without images runs neither encoder nor projector."""
    config = small_model.small_config()
    model = small_model.build(config, parallel)
    model(small_model.batch(config, 1, [60, 20], num_tiles=0)).sum().backward()
    assert all(p.grad is None for p in model.vision_projection.parameters())
    model.overlaps_data_parallelism = True
    model(small_model.batch(config, 1, [60, 20], num_tiles=0)).sum().backward()
    for name, parameter in model.vision_projection.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name
