"""What a step computes is counted from its real tokens, and compared with the device's peak."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import layout_steps, small_model
from torch.utils.flop_counter import FlopCounterMode

from nvlm.batch import StepBatch
from nvlm.plan.hardware import CARDS, card_of_device
from nvlm.platform import cpu
from nvlm.sizes.flops import step_flops
from nvlm.train.step import train_step
from nvlm.train.throughput import StepWork, explain_peak, rates, step_work


def test_work_of_a_step_is_what_torch_counts(parallel, measure):
    """Everything trains, and nothing is padding."""
    config = small_model.small_config("train.precision=fp32", "stage.freeze=[]")
    training = layout_steps.TwoSteps(config, parallel).training
    batches = [small_model.batch(config, 1, [60, 20], 2), small_model.batch(config, 2, [80], 0)]
    pairs = [60**2 + 20**2, 80**2]
    batches = [
        replace(batch, num_real_tokens=80, num_real_token_pairs=number)
        for batch, number in zip(batches, pairs, strict=True)
    ]
    batch = StepBatch(batches, [], {})
    work = step_work(batch, step_flops(config), parallel)
    assert work.imbalance == 1
    with FlopCounterMode(display=False) as counter:
        result = train_step(training.chunks, training.optimizer, batch, parallel, 1)
    # Torch's attention computes the masked half as well, and backwards its scores once more; ours
    # is what has to be computed.
    flops = step_flops(config)
    error = abs(counter.get_total_flops() - work.flops - flops.per_token_pair * sum(pairs))
    measure("FLOPs of a step", "torch's flop counter", error / work.flops, 0.05)
    assert result.forward_backward_seconds > 0 and result.optimizer_seconds > 0


def test_a_replica_with_less_work_waits(parallel):
    config = small_model.small_config()
    flops = step_flops(config)
    batch = StepBatch([replace(small_model.batch(config, 1, [80], 0), num_real_tokens=80)], [], {})
    alone = step_work(batch, flops, parallel)
    # As the second of two data ranks whose other one has nothing to do.
    beside_idle = step_work(batch, flops, replace(parallel, data_size=2))
    assert alone.flops == beside_idle.flops
    assert (alone.imbalance, beside_idle.imbalance) == (1, 2)


@pytest.mark.parametrize("vision", ["tensor", "tile_parallel"])
def test_passes_through_the_encoder_are_timed_in_training_alone(parallel, monkeypatch, vision):
    config = small_model.small_config(f"parallel.vision={vision}")
    training = layout_steps.TwoSteps(config, parallel).training
    model, moments = training.chunks[0].module, itertools.count()
    monkeypatch.setattr(cpu, "moment", lambda: float(next(moments)))
    micro_batches = [small_model.batch(config, n, [80], num_tiles=n) for n in (1, 0, 2)]
    tiles = torch.cat([m.tiles for m in micro_batches])
    model.eval()
    model.visual.encode_tiles(tiles)
    model.train()
    batch = layout_steps.delivered(micro_batches, parallel, vision == "tile_parallel")
    taken = training.take_step(batch)
    # All tiles of the step go at once where they are encoded before it; one moment between two.
    assert taken.encode_seconds == (1 if vision == "tile_parallel" else 2)
    assert model.visual.take_encoder_seconds() == 0


def test_a_replica_that_takes_longer_is_seen(parallel):
    config = small_model.small_config()
    batch, flops = StepBatch([small_model.batch(config, 1, [80], 0)], [], {}), step_flops(config)
    assert step_work(batch, flops, parallel, 3.0).seconds_imbalance == 1
    beside_quick = step_work(batch, flops, replace(parallel, data_size=2), 3.0)
    assert beside_quick.seconds_imbalance == 2


def test_rates():
    card = CARDS["h100-80gb"]
    found = rates(
        StepWork(8 * 10**15, imbalance=1.1, seconds_imbalance=1.3), 1000, 20, 8, 4.0, card
    )
    assert found == {
        "tokens_per_second": 250,
        "tiles_per_second": 5,
        "tflops_per_second": 250,
        "mfu": pytest.approx(250e12 / 989.4e12),
        "rank_imbalance": 1.1,
        "rank_seconds_imbalance": 1.3,
    }
    assert "mfu" not in rates(StepWork(flops=8, imbalance=1.0), 1, 1, 1, 1.0, None)


@pytest.mark.parametrize(
    "device, card",
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H100 PCIe", None),  # another peak than the SXM card's
        ("NVIDIA A100-PCIE-40GB", None),
        ("CPU (1 thread)", None),
    ],
)
def test_cards_are_known_by_what_their_driver_calls_them(device, card):
    assert card_of_device(device) is (card and CARDS[card])
    line = explain_peak(card_of_device(device))
    assert (line is None) == (card is None)
    assert line is None or f"({card}, dense bf16)" in line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_has_a_peak():
    from nvlm.train.throughput import device_card

    assert device_card() is not None
