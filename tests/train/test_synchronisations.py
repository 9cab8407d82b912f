"""The host waits for the device a few times per step, and never inside a micro-batch."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from helpers import beside_batches, layout_steps, small_model
from helpers.synchronisations import counted

from nvlm.batch import StepBatch

# Of a step, however many micro-batches it has.
PER_STEP = {
    # Whether there is a trained token, once for each chunk.
    "aten._local_scalar_dense in distributed/finalize_model_grads.py finalize_model_grads": 1,
    "aten._local_scalar_dense in optimizer/clip_grads.py get_grad_norm_fp32": 1,
    "tolist in train/throughput.py step_work": 1,
    # All counts of the step and its loss.
    "tolist in train/step.py _reduce": 1,
}
RECOMPUTED = [
    "train.recompute.vision.granularity=full",
    "train.recompute.language.granularity=full",
]


@pytest.mark.parametrize("settings", [[], RECOMPUTED], ids=["kept", "recomputed"])
def test_number_of_waits_per_step(settings, parallel):
    config = small_model.small_config(
        "stage.freeze=[]", "train.loss_weighting=sqrt_length", *settings
    )
    training = layout_steps.TwoSteps(config, parallel).training
    sources = dict.fromkeys(("one", "two"), 0.0)  # whose losses are told apart
    micro_batches = [
        replace(batch, source_numbers=torch.full(batch.tokens.shape, number % 2, dtype=torch.int32))
        for number, batch in enumerate(layout_steps.with_images(config))
    ]
    # Copies what stays on the device.
    training.take_step(StepBatch(micro_batches[:1], [], {}, epochs=sources))
    for number in (1, len(micro_batches)):
        batch = StepBatch(micro_batches[:number], [], {}, epochs=sources)
        with counted() as found:
            training.take_step(batch)
        assert found == PER_STEP, f"{number} micro-batches"


@pytest.mark.parametrize("fusion", beside_batches.FUSIONS)
def test_cross_attention_waits_for_nothing(fusion, parallel):
    """Each of two layers reads the ranges that tokens see, which are in host memory."""
    config = beside_batches.config_of(fusion, "stage.freeze=[]")
    training = layout_steps.TwoSteps(config, parallel).training
    micro_batches = layout_steps.with_rows_beside(config)
    training.take_step(StepBatch(micro_batches[:1], [], {}))
    with counted() as found:
        training.take_step(StepBatch(micro_batches, [], {}))
    ranges = {name: n for name, n in found.items() if "cross_attention" in name}
    assert ranges == {"tolist in parts/cross_attention.py forward": 4}
    assert {name: n for name, n in found.items() if name not in ranges} == PER_STEP


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_torch_sees_no_other_waits_on_a_gpu(parallel):
    """Torch says itself when it waits; not all of its ways of waiting, so this is no more."""
    from nvlm import platform

    config = small_model.small_config("stage.freeze=[]")
    training = layout_steps.TwoSteps(config, parallel).training
    device = platform.current().device()
    micro_batches = [m.to(device) for m in layout_steps.with_images(config)]
    training.take_step(StepBatch(micro_batches[:1], [], {}))
    num_waits = []
    for number in (1, len(micro_batches)):
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            training.take_step(StepBatch(micro_batches[:number], [], {}))
        torch.cuda.set_sync_debug_mode("default")
        num_waits.append(sum("synchronizing" in str(warning.message) for warning in seen))
    assert num_waits[0] == num_waits[1] <= sum(PER_STEP.values()), num_waits
