"""SwiGLU that keeps its input alone for the backward pass.

Without fusion Megatron-core's MLP keeps two more tensors of its width: the gate after SiLU, and a
copy of the other half, to which it adds an offset of zero. Its fused SwiGLU keeps the input alone,
too, but computes the gradient by products of bf16 numbers that are rounded one by one where nothing
compiles it. Here it is autograd's, bit by bit (tests/model/test_swiglu.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nvlm.model.parts.compiled import compiled


def swiglu(gate_and_up: Tensor) -> Tensor:
    """silu(gate) * up: [..., 2f], gate first -> [..., f]."""
    return _SwiGLU.apply(gate_and_up)  # type: ignore[return-value]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_up)
        return product(gate_and_up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return input_gradient(gradient, *ctx.saved_tensors)


@compiled
def product(gate_and_up: Tensor) -> Tensor:
    gate, up = gate_and_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


@compiled
def input_gradient(gradient: Tensor, gate_and_up: Tensor) -> Tensor:
    """[..., 2f], from the output's gradient [..., f]."""
    gate, up = gate_and_up.chunk(2, dim=-1)
    of_gate = torch.ops.aten.silu_backward(gradient * up, gate)
    return torch.cat([of_gate, gradient * functional.silu(gate)], dim=-1)
