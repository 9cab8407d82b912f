"""RMSNorm and LayerNorm for Megatron-core layers, and norms of queries and keys: InternViT's over
all heads together, Qwen3's of each head.

The normalisation runs in fp32; its result is cast to the input's dtype before the weight is
applied, as InternViT's and Qwen2's published implementations do.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional

from nvlm.model.parts.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.epsilon = eps
        self.weight = _parameter(config, hidden_size)
        # Under sequence parallelism each rank sees part of the tokens: Megatron-core then sums
        # the gradients of the parameters marked so over the tensor-parallel group.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        return self.normalized(hidden, self.weight)

    def normalized(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(hidden, weight, self.epsilon)


class LayerNorm(nn.Module):
    """Torch's layer normalisation with weight and bias, built from a `TransformerConfig`.

    Torch's own kernel is one, and keeps its input, mean and deviation only.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.epsilon = eps
        self.weight = _parameter(config, hidden_size)
        self.bias = _parameter(config, hidden_size)
        for parameter in (self.weight, self.bias):
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.layer_norm(
            hidden, self.weight.shape, self.weight, self.bias, self.epsilon
        )


def norm_class(normalization: str) -> type[RMSNorm] | type[LayerNorm]:
    """The class that a configuration's `normalization` names."""
    return {"RMSNorm": RMSNorm, "LayerNorm": LayerNorm}[normalization]


class QueryKeyNorm(nn.Module):
    """InternViT's RMSNorm of queries (or keys) over the channels of all heads together.

    The heads are split over the tensor-parallel group, so the sum of squares is summed over its
    ranks. Stored heads beyond the real ones are zero and add nothing to that sum; the mean is taken
    over the real channels only.

    Args:
        config: the vision encoder's configuration (`num_attention_heads` counts stored heads).
        hidden_size: channels of one head.
        num_real_heads: heads that are not padding.
        tensor_group: the tensor-parallel process group.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        num_real_heads: int,
        tensor_group: dist.ProcessGroup,
    ):
        super().__init__()
        self.epsilon = eps
        self.num_real_channels = num_real_heads * hidden_size
        self.tensor_group = tensor_group
        num_local_heads = config.num_attention_heads // tensor_group.size()
        self.weight = _parameter(config, num_local_heads * hidden_size)
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, heads: Tensor) -> Tensor:
        """heads: [s, b, local heads, head_dim]; returns the same shape."""
        wide = heads.flatten(-2).float()
        square_sum = sum_over_ranks(wide.square().sum(-1, keepdim=True), self.tensor_group)
        scale = torch.rsqrt(square_sum / self.num_real_channels + self.epsilon)
        return ((wide * scale).to(heads.dtype) * self.weight).view_as(heads)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict:
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tensor_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class HeadNorm(nn.Module):
    """RMSNorm of each head's queries (or keys), with one weight for all heads (Qwen3).

    Each tensor-parallel rank has the weight, and sees its own heads only: the weight's gradient is
    the sum over ranks. Megatron-core sums it by the parameter's name if `qk_layernorm` is set, and
    then does the same to InternViT's, whose weights are split. So here it is summed in the backward
    pass.

    Args:
        hidden_size: channels of one head.
        tensor_group: the tensor-parallel process group.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        tensor_group: dist.ProcessGroup,
    ):
        super().__init__()
        self.epsilon = eps
        self.tensor_group = tensor_group
        self.weight = _parameter(config, hidden_size)

    def forward(self, heads: Tensor) -> Tensor:
        """heads: [..., local heads, head_dim]; returns the same shape."""
        return self.normalized(heads, self.weight)

    def normalized(self, heads: Tensor, weight: Tensor) -> Tensor:
        weight = _with_summed_gradient(weight, self.tensor_group)
        # Keys are a view of one tensor with queries and values, which would be kept with it.
        return rms_norm(heads.contiguous(), weight, self.epsilon)


def _with_summed_gradient(weight: Tensor, group: dist.ProcessGroup) -> Tensor:
    if group.size() == 1 or not weight.requires_grad:
        return weight
    return _SumGradient.apply(weight, group)  # type: ignore[return-value]


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _all_reduced(gradient, ctx.group), None


def sum_over_ranks(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum of `value` over the ranks of `group`, with the gradient that belongs to it.

    Every rank goes on with the sum in its own way, so the gradient of one rank's `value` is the sum
    of all ranks' gradients of the sum: the backward pass is an all-reduce too. (An all-gather
    without one, as in the published tensor-parallel versions of this norm, loses that term.)
    """
    if group.size() == 1:
        return value
    return _SumOverRanks.apply(value, group)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_reduced(value, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _all_reduced(gradient, ctx.group), None


def _all_reduced(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _parameter(config: TransformerConfig, size: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size, dtype=config.params_dtype))
