"""RMSNorm against the same operations differentiated by autograd: equal bits, fewer kept bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nvlm.model.parts.rms_norm import rms_norm

EPSILON = 1e-6


def published(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """As Qwen2's and InternViT's published code writes it."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale).to(hidden.dtype) * weight


def inputs(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = 3 * torch.randn(40, 2, 192, generator=generator)
    weight = 1 + torch.randn(192, generator=generator) / 3
    gradient = torch.randn(40, 2, 192, generator=generator)
    return [tensor.to(dtype) for tensor in (hidden, weight, gradient)]


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bits_are_those_of_autograd(dtype, trained, measure):
    found = []
    for norm in (published, rms_norm):
        hidden, weight, gradient = inputs(dtype)
        hidden.requires_grad_()
        weight.requires_grad_(trained)
        output = norm(hidden, weight, EPSILON)
        output.backward(gradient)
        assert hidden.grad is not None and (weight.grad is not None) == trained
        found.append([output.detach(), hidden.grad, *([weight.grad] if trained else [])])
    error = max(float((ours - truth).abs().max()) for truth, ours in zip(*found, strict=True))
    what = f"RMSNorm in {dtype}, output and gradients"
    measure(what, "the same operations under autograd", error, 0)
    assert all(ours.dtype == truth.dtype for truth, ours in zip(*found, strict=True))


def test_it_keeps_the_input_and_a_number_per_row():
    hidden, weight, _ = inputs(torch.bfloat16)
    hidden.requires_grad_()
    weight.requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(hidden, weight, EPSILON)
    assert [(t.dtype, tuple(t.shape)) for t in kept] == [
        (torch.bfloat16, (40, 2, 192)),
        (torch.bfloat16, (192,)),
        (torch.float32, (40, 2, 1)),
    ]
