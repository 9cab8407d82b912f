"""NVLM-X and NVLM-H go on with the checkpoints of other layouts: the second step is the same."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import beside_batches, fused_steps, layout_steps, spawn
from helpers.layout_steps import RESUMED, STEPS, TwoFusedSteps

NUM_PROCESSES = 4
LAYOUTS = {
    "TP2 + SP x PP2 x VPP2, recomputed": [
        "parallel.tensor=2",
        "parallel.sequence=true",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "train.recompute.vision.granularity=full",
        "train.recompute.language.granularity=full",
    ],
    "PP4, layers 0 1 1 2": ["parallel.pipeline=4", "parallel.layout=[0, 1, 1, 2]"],
    "TP2 x DP2": ["parallel.tensor=2"],
    "PP2 x VPP2 x DP2, layers 0+1 2+1": [
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "parallel.layout=[[0, 1], [2, 1]]",
    ],
}


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize("fusion", beside_batches.FUSIONS)
def test_steps_and_checkpoints_are_those_of_one_process(fusion, parallel, tmp_path, measure):
    config = fused_steps.config_of(fusion, tmp_path / layout_steps.SINGLE)
    truth = layout_steps.two_steps(config, parallel, True, TwoFusedSteps)
    expected = layout_steps.assemble([truth])
    program = (fused_steps.__file__, tmp_path, json.dumps(LAYOUTS), fusion)
    spawn.run_program_or_fail(NUM_PROCESSES, *program, log=tmp_path / "log")
    for layout in LAYOUTS:
        ranks = [
            torch.load(tmp_path / f"{layout} rank{rank}.pt", weights_only=False)
            for rank in range(NUM_PROCESSES)
        ]
        for case in (STEPS, RESUMED):
            found = layout_steps.assemble([result[case] for result in ranks])
            what = f"change of weights in two steps, {fusion}, {layout}, {case}"
            measure(what, "one process", layout_steps.worst_change(found, expected), 1e-4)
    alone = layout_steps.second_step(config, parallel, tmp_path / list(LAYOUTS)[-1], TwoFusedSteps)
    found = layout_steps.assemble([alone])
    what = f"change of weights, {fusion}, resumed by one process"
    measure(what, "one process", layout_steps.worst_change(found, expected), 1e-4)
