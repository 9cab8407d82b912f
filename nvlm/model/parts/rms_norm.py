"""RMS normalisation that keeps its input and one number per row for the backward pass.

Written as torch operations, autograd would keep an fp32 copy of the input and the normalised rows
before the weight as well: 6 bytes per number instead of none, since the input in bf16 is kept by
nobody else. They are computed again instead, by the same operations in the same order, so outputs
and gradients are bit-equal to autograd's (tests/model/test_rms_norm.py).

Shape suffixes: c channels, 1 one number per row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nvlm.model.parts.compiled import compiled


def rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """hidden [..., c] / sqrt(mean(hidden^2) + epsilon), rounded to its dtype, times weight [c]."""
    return _RmsNorm.apply(hidden, weight, epsilon)  # type: ignore[return-value]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        output, scale = normalized(hidden, weight, epsilon)
        ctx.save_for_backward(hidden, weight, scale)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:  # type: ignore[override]
        hidden, weight, scale = ctx.saved_tensors
        of_weight = weight_gradient(gradient, hidden, scale) if ctx.needs_input_grad[1] else None
        return input_gradient(gradient, hidden, weight, scale), of_weight, None


@compiled
def normalized(hidden: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The output, in the dtype of `hidden`, and what rows were multiplied with, fp32 [..., 1]."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale).to(hidden.dtype) * weight, scale


@compiled
def input_gradient(gradient: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[..., c], from the output's gradient: what autograd would compute, step by step."""
    wide = hidden.float()
    of_rows = (gradient * weight).float()
    of_scale = (of_rows * wide).sum(-1, keepdim=True)
    of_mean = -0.5 * of_scale * scale.pow(3)
    through_mean = of_mean / hidden.shape[-1] * (2 * wide)
    return (of_rows * scale + through_mean).to(hidden.dtype)


@compiled
def weight_gradient(gradient: Tensor, hidden: Tensor, scale: Tensor) -> Tensor:
    """[c]: the sum over all rows."""
    rows = (hidden.float() * scale).to(hidden.dtype)
    return (gradient * rows).sum_to_size(hidden.shape[-1:])
