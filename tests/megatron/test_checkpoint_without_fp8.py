"""Norms are recomputed without Transformer Engine, which plain Megatron-core cannot."""

from __future__ import annotations

import pytest
import torch
from megatron.core.tensor_parallel import random
from torch import nn

from nvlm.megatron.checkpoint_without_fp8 import ask_no_fp8_state

needs_none = pytest.mark.skipif(random.HAVE_TE, reason="Transformer Engine is installed")


def gradient(layer: nn.Module) -> torch.Tensor:
    checkpoint = random.CheckpointWithoutOutput()
    hidden = torch.linspace(0, 1, 12).view(3, 4).requires_grad_()
    output = checkpoint.checkpoint(layer, hidden)
    last = output.square()
    checkpoint.discard_output_and_register_recompute(last)
    assert output.untyped_storage().nbytes() == 0
    last.sum().backward()
    assert hidden.grad is not None
    return hidden.grad


@needs_none
def test_plain_megatron_core_asks_for_the_state_of_fp8(parallel, monkeypatch):
    monkeypatch.setattr(random.CheckpointWithoutOutput.__init__, "__defaults__", (False,))
    with pytest.raises(NameError, match="FP8GlobalStateManager"):
        gradient(nn.LayerNorm(4))


def test_outputs_are_recomputed(parallel):
    ask_no_fp8_state()
    layer = nn.LayerNorm(4)
    found = gradient(layer)
    hidden = torch.linspace(0, 1, 12).view(3, 4).requires_grad_()
    layer(hidden).square().sum().backward()
    assert hidden.grad is not None and torch.equal(found, hidden.grad)
