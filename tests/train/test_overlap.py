"""Gradients reduced and parameters gathered beside the computation: the same steps, bit by bit.

Also where a data rank's micro-batches have no tiles while another's have.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import overlap_steps, small_model, spawn

pytestmark = pytest.mark.parallel


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("overlap")
    spawn.run_program_or_fail(2, overlap_steps.__file__, folder, log=folder / "log")
    return [torch.load(path) for path in sorted(Path(folder).glob("rank*.pt"))]


@pytest.mark.parametrize("case", overlap_steps.CASES)
def test_steps_are_those_without_overlap(case: str, by_rank, measure):
    steps = weights = 0.0
    for results in by_rank:
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


def test_all_ranks_have_the_same_parameters(by_rank):
    first, second = by_rank
    for case in list(overlap_steps.CASES)[:3]:
        found = second[case, True]["parameters"]
        for name, parameter in first[case, True]["parameters"].items():
            assert torch.equal(found[name], parameter), (case, name)


def test_bytes_that_a_tensor_parallel_rank_keeps(by_rank, measure):
    for rank, results in enumerate(by_rank):
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
