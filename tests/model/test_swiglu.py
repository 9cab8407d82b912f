"""SwiGLU against Megatron-core's own, unfused and fused: equal bits, fewer kept bytes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from megatron.core.fusions.fused_bias_swiglu import bias_swiglu_impl
from torch import Tensor
from torch.nn import functional

from nvlm.model.parts.swiglu import swiglu


def unfused(gate_and_up: Tensor) -> Tensor:
    """As Megatron-core's MLP computes it."""
    gate, up = torch.chunk(gate_and_up, 2, dim=-1)
    return functional.silu(gate) * (up + 0.0)


def results(function, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    # In fp64 the numbers of bf16.
    given = torch.bfloat16 if dtype == torch.float64 else dtype
    drawn = 2 * torch.randn(40, 1, 384, generator=generator)
    gate_and_up = drawn.to(given).to(dtype).requires_grad_()
    output = function(gate_and_up)
    output.backward(torch.randn(40, 1, 192, generator=generator).to(given).to(dtype))
    assert gate_and_up.grad is not None
    return output.detach(), gate_and_up.grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_bits_are_those_of_the_unfused_one(dtype, measure):
    pairs = zip(results(unfused, dtype), results(swiglu, dtype), strict=True)
    error = max(float((ours - truth).abs().max()) for truth, ours in pairs)
    what = f"SwiGLU in {dtype}, output and gradient"
    measure(what, "Megatron-core's unfused one", error, 0)


def test_megatron_core_rounds_its_fused_gradient_more_often(measure):
    """Why the fusion of Megatron-core is not used; against the gradient in fp64."""
    _, truth = results(unfused, torch.float64)
    # Compiled for a GPU, if it was imported before the platform was chosen.
    with torch.compiler.set_stance("force_eager"):
        errors = {
            name: float((results(function, torch.bfloat16)[1] - truth).norm() / truth.norm())
            for name, function in (
                ("ours", swiglu),
                ("theirs", partial(bias_swiglu_impl, bias=None)),
            )
        }
    assert errors["ours"] < 0.9 * errors["theirs"]
    measure("SwiGLU in bf16, gradient, relative", "the same in fp64", errors["ours"], 2**-8)


def test_it_keeps_its_input():
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        swiglu(torch.ones(7, 1, 64, dtype=torch.bfloat16, requires_grad=True))
    assert [tuple(tensor.shape) for tensor in kept] == [(7, 1, 64)]
