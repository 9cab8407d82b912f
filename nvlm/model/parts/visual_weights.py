"""Norms and linear layers with weights of their own for image tokens (`visual_weights`).

mPLUG-Owl2 (arXiv 2311.04257, section 3.2: modality-adaptive module): norms, keys and values.
Mixture-of-Transformers (arXiv 2411.04996, section 2: norms, attention's matrices, MLP): all.
Attention itself is one for all tokens. Every linear multiplies each token with one matrix only.

Parameters are those of the layer that each is a kind of, and `visual_...` beside them. Where a row
has no image token, these still get a gradient, of zero.

Shape suffixes: t tokens, g groups of this rank, r query heads of each, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn
from torch.nn import functional

from nvlm.model.parts.norms import HeadNorm, RMSNorm
from nvlm.model.parts.token_kinds import CurrentKinds, VisualLayer


class VisualRMSNorm(RMSNorm):
    kinds: CurrentKinds

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6):
        super().__init__(config, hidden_size, eps)
        self.visual_weight = nn.Parameter(torch.empty_like(self.weight))
        self.visual_weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        of_text, mask = super().forward(hidden), self.kinds.mask(hidden)
        if mask is None:
            return of_text
        return torch.where(mask, self.normalized(hidden, self.visual_weight), of_text)


class VisualHeadNorm(HeadNorm):
    kinds: CurrentKinds

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        tensor_group: dist.ProcessGroup,
    ):
        super().__init__(config, hidden_size, eps, tensor_group)
        self.visual_weight = nn.Parameter(torch.empty_like(self.weight))

    def forward(self, heads: Tensor) -> Tensor:
        of_text, mask = super().forward(heads), self.kinds.mask(heads)
        if mask is None:
            return of_text
        return torch.where(mask, self.normalized(heads, self.visual_weight), of_text)


class VisualColumnLinear(ColumnParallelLinear):
    """Rows of queries, keys and values, or of gate and up."""

    kinds: CurrentKinds
    weight: nn.Parameter

    def __init__(self, *sizes: int, tp_comm_buffer_name: str | None = None, **settings: Any):
        super().__init__(*sizes, tp_comm_buffer_name=tp_comm_buffer_name, **settings)
        # Megatron-core's MLP stores gate and up of its first layer apart.
        self._is_gated = tp_comm_buffer_name == "fc1"
        self.visual_weight = _split_like(self.weight, len(self.weight))
        if self.bias is not None:
            self.visual_bias = _split_like(self.bias, len(self.bias))

    def forward(self, input_: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        kinds = self.kinds.of_row
        if kinds is None:
            return super().forward(input_)
        assert self.bias is None or not self.skip_bias_add
        text, visual = kinds.split(_whole_row(self, input_))
        visual = functional.linear(
            visual, self.visual_weight, None if self.bias is None else self.visual_bias
        )
        return kinds.join(functional.linear(text, self.weight, self.bias), visual), None

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None) -> dict:
        entries = _sharded(self, 0, prefix, sharded_offsets, metadata)
        if self._is_gated:
            key = f"{prefix}visual_weight"
            is_single = metadata.get("singleton_local_shards", False)
            entries[key] = apply_swiglu_sharded_factory(entries[key], sharded_offsets, is_single)
        return entries


class VisualKeysValues(ColumnParallelLinear):
    """Queries of all tokens by one matrix; keys and values of images by one of their own."""

    kinds: CurrentKinds
    weight: nn.Parameter

    def __init__(self, *sizes: int, config: TransformerConfig, **settings: Any):
        super().__init__(*sizes, config=config, **settings)
        self.num_groups = config.num_query_groups // self.tp_group.size()  # type: ignore[operator]
        num_rows = 2 * self.num_groups * config.kv_channels  # type: ignore[operator]
        self.visual_weight = _split_like(self.weight, num_rows)
        if self.bias is not None:
            self.visual_bias = _split_like(self.bias, num_rows)

    def forward(self, input_: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        kinds = self.kinds.of_row
        if kinds is None:
            return super().forward(input_)
        row, places = _whole_row(self, input_), kinds.visual_positions
        qkv = functional.linear(row, self.weight, self.bias).unflatten(-1, (self.num_groups, -1))
        visual = functional.linear(
            row.index_select(0, places),
            self.visual_weight,
            None if self.bias is None else self.visual_bias,
        ).unflatten(-1, (self.num_groups, -1))
        num_queries = qkv.shape[-1] - visual.shape[-1]
        queries, keys_values = qkv.split([num_queries, visual.shape[-1]], dim=-1)
        keys_values = keys_values.index_copy(0, places, visual)
        return torch.cat([queries, keys_values], dim=-1).flatten(-2), None

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None) -> dict:
        return _sharded(self, 0, prefix, sharded_offsets, metadata)


class VisualRowLinear(RowParallelLinear):
    """What attention or the MLP writes back."""

    kinds: CurrentKinds
    weight: nn.Parameter

    def __init__(self, *sizes: int, **settings: Any):
        super().__init__(*sizes, **settings)
        assert self.bias is None
        self.visual_weight = _split_like(self.weight, len(self.weight), axis=1)

    def forward(self, input_: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        kinds = self.kinds.of_row
        if kinds is None:
            return super().forward(input_)[0], None
        text, visual = kinds.split(input_)
        output = kinds.join(
            functional.linear(text, self.weight), functional.linear(visual, self.visual_weight)
        )
        if self.sequence_parallel:
            return reduce_scatter_to_sequence_parallel_region(output, group=self.tp_group), None
        return reduce_from_tensor_model_parallel_region(output, group=self.tp_group), None

    def sharded_state_dict(self, prefix="", sharded_offsets=(), metadata=None) -> dict:
        return _sharded(self, 1, prefix, sharded_offsets, metadata)


_PARTS = (
    VisualLayer,
    VisualRMSNorm,
    VisualHeadNorm,
    VisualColumnLinear,
    VisualKeysValues,
    VisualRowLinear,
)


def share_kinds(decoder: nn.Module, tensor_group: dist.ProcessGroup) -> None:
    """Give all parts of a decoder's layers the same `CurrentKinds`."""
    kinds = CurrentKinds(tensor_group)
    for module in decoder.modules():
        if isinstance(module, _PARTS):
            module.kinds = kinds


def _split_like(parameter: Tensor, num_rows: int, axis: int = 0) -> nn.Parameter:
    found = nn.Parameter(parameter.new_empty(num_rows, *parameter.shape[1:]))
    set_tensor_model_parallel_attributes(found, True, axis, 1)
    found.allreduce = True  # type: ignore[attr-defined]
    return found


def _whole_row(linear: ColumnParallelLinear, input_: Tensor) -> Tensor:
    """[t, ...]; its gradient is summed over the ranks, each of which has some of the columns."""
    if linear.sequence_parallel:
        return gather_from_sequence_parallel_region(input_, group=linear.tp_group)
    return copy_to_tensor_model_parallel_region(input_, group=linear.tp_group)


def _sharded(
    linear: Any, axis: int, prefix: str, sharded_offsets: tuple, metadata: dict | None
) -> dict:
    names = ("weight", "visual_weight", "bias", "visual_bias")
    assert metadata is not None
    return make_sharded_tensors_for_checkpoint(
        linear.state_dict(prefix="", keep_vars=True),
        prefix,
        dict.fromkeys(names, axis),
        sharded_offsets,
        tp_group=linear.tp_group,
        dp_cp_group=metadata["dp_cp_group"],
    )
