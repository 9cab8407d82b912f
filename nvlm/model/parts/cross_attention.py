"""Gated cross-attention of NVLM-X and NVLM-H, in the slots that Megatron-core's layers have for it.

Between self-attention and MLP (paper section 4.1, figure 3): x + tanh(gate) * attention(norm(x)).
The paper takes the gate from Flamingo, where it begins at 0, and prints neither heads nor norm:
those here are the decoder's own. Queries are not rotated: what they look at has no place in the
text. Keys and values are the row beside the decoder's (`nvlm.batch.Beside`), of which each stretch
of tokens sees a range (`sights`).

Shape suffixes: t tokens of the row, k tokens beside it, s tokens of a stretch, r tokens that it
sees, n stretches alike, h query heads, g key/value heads (a divisor of h), d channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from nvlm.batch import Sight
from nvlm.model.parts.cache import Decode, Prefill
from nvlm.model.parts.dropout import HeadDropout
from nvlm.model.parts.layers import LayerParts
from nvlm.model.splice import with_zero_gradient

# torch's own. Another one makes a plan for every new shape: see nvlm/platform/attention.py.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class CrossAttention(MegatronModule):
    """Attention of the decoder's tokens to the row beside.

    Megatron-core's own has as many key/value heads as query heads, and masks instead of ranges.

    Args:
        num_groups: key/value heads of the whole layer.
        level: which of how many rows of one length, that stand one behind the other in the row
            beside, this layer reads.
        pg_collection: what its layers give each attention.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        num_groups: int,
        parts: LayerParts,
        pg_collection: ProcessGroupCollection,
        level: tuple[int, int] = (0, 1),
        **_: object,
    ):
        super().__init__(config)
        self.layer_number = layer_number
        self.level, self.num_levels = level
        self.tp_group = pg_collection.tp
        assert config.kv_channels is not None
        self.head_dim = config.kv_channels
        self.num_groups = num_groups // self.tp_group.size()
        width = config.num_attention_heads * self.head_dim
        settings: dict[str, Any] = {
            "config": config,
            "bias": False,
            "is_expert": False,
            "tp_group": self.tp_group,
        }
        column = {**settings, "gather_output": False, "init_method": config.init_method}
        self.linear_q = parts.column_linear(
            config.hidden_size, width, skip_bias_add=False, **column
        )
        self.linear_kv = parts.column_linear(
            config.hidden_size, 2 * num_groups * self.head_dim, skip_bias_add=False, **column
        )
        self.linear_proj = parts.row_linear(
            width,
            config.hidden_size,
            input_is_parallel=True,
            skip_bias_add=True,
            init_method=config.output_layer_init_method,
            **settings,
        )
        self._dropout = HeadDropout(config)
        modules = config.recompute_modules or []
        self._recomputes = config.recompute_granularity == "selective" and "core_attn" in modules

    def forward(
        self,
        hidden: Tensor,
        attention_mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        inference_context: Prefill | Decode | None = None,
    ) -> tuple[Tensor | None, None]:
        """
        Args:
            hidden: [t, 1, hidden size], normed; with sequence parallelism this rank's part of t.
            attention_mask: the sights [n, 4], in host memory: recomputation hands on nothing but
                tensors; of later tokens of questions any. None: nobody sees anything. Of no rows:
                nobody does either, and this layer's parameters still get gradients, of zero.
            key_value_states: [k, 1, hidden size], likewise in parts; of several levels so many of
                them, one behind the other. None: there are none.
            inference_context: of questions that are being answered.

        Returns:
            What the layer adds [t, 1, hidden size], before the gate, and no bias. Zeros where a
            token sees nothing; None where nobody does, and fewer rows than t where that is only for
            the sake of the gradients.
        """
        if attention_mask is None:
            return None, None
        if isinstance(inference_context, Decode):
            query_bhd = self.linear_q(hidden)[0][0].unflatten(-1, (-1, self.head_dim))
            seen = inference_context.attend_beside(self.layer_number, query_bhd)
            return self.linear_proj(seen[None])
        if key_value_states is not None:
            key_value_states = key_value_states.chunk(self.num_levels)[self.level]
        sights = [tuple(row) for row in attention_mask.tolist()]
        if not sights:
            hidden, key_value_states = _one_row(hidden, key_value_states)
            num_rows = self.tp_group.size() if self.config.sequence_parallel else 1
            sights = [(0, num_rows, 0, num_rows)]
        assert key_value_states is not None
        query, key_and_value = self.linear_q(hidden)[0], self.linear_kv(key_value_states)[0]
        query_thd = query[:, 0].unflatten(-1, (-1, self.head_dim))
        key_kgd, value_kgd = (
            key_and_value[:, 0].unflatten(-1, (self.num_groups, 2, self.head_dim)).unbind(2)
        )

        if isinstance(inference_context, Prefill):
            inference_context.keep_beside(self.layer_number, key_kgd, value_kgd)

        def attend(query_thd: Tensor, key_kgd: Tensor, value_kgd: Tensor) -> Tensor:
            with self._dropout.drawing(self.training):
                share = self._dropout.share(self.training)
                return attend_to_sights(query_thd, key_kgd, value_kgd, sights, share)

        if self._recomputes and self.training:
            out: Any = tensor_parallel.checkpoint(attend, False, query_thd, key_kgd, value_kgd)
        else:
            out = attend(query_thd, key_kgd, value_kgd)
        return self.linear_proj(out[:, None])


def _one_row(hidden: Tensor, beside: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first row of each, so that gradients reach all that trains before them."""
    first = hidden[:1]
    return first, torch.zeros_like(first) if beside is None else beside[:1]


def attend_to_sights(
    query_thd: Tensor,
    key_kgd: Tensor,
    value_kgd: Tensor,
    sights: Sequence[Sight],
    dropout: float = 0.0,
) -> Tensor:
    """[t, h*d]; zeros for tokens in no sight. `dropout`: share of weights that are zeroed.

    One call for all stretches of one length that see as many tokens, as tags do: exact, without a
    mask of t x k, and without work for what is not seen.
    """
    alike: dict[tuple[int, int], list[Sight]] = {}
    for sight in sights:
        start, end, first, last = sight
        alike.setdefault((end - start, last - first), []).append(sight)
    found: dict[int, Tensor] = {}
    for some in alike.values():
        queries = _stacked(query_thd, [(start, end) for start, end, _, _ in some])
        seen = [(first, last) for _, _, first, last in some]
        with sdpa_kernel(_KERNELS):
            out_nhsd = functional.scaled_dot_product_attention(
                queries,
                _stacked(key_kgd, seen),
                _stacked(value_kgd, seen),
                dropout_p=dropout,
                enable_gqa=query_thd.shape[1] != key_kgd.shape[1],
            )
        outputs = out_nhsd.transpose(1, 2).flatten(2).unbind()
        found.update({sight[0]: out for sight, out in zip(some, outputs, strict=True)})
    return _in_order(found, query_thd)


def _stacked(tensor: Tensor, ranges: list[tuple[int, int]]) -> Tensor:
    """[n, heads, range, d] of `tensor` [*, heads, d]; of one range a view."""
    parts = [tensor[start:end] for start, end in ranges]
    stacked = torch.stack(parts) if len(parts) > 1 else parts[0][None]
    return stacked.transpose(1, 2)


def _in_order(found: dict[int, Tensor], query_thd: Tensor) -> Tensor:
    """The outputs [s, h*d] of stretches by their first token, and zeros between them."""
    rows, end = [], 0
    width = query_thd.shape[1] * query_thd.shape[2]
    for start, out in sorted(found.items(), key=lambda item: item[0]):
        if start > end:
            rows.append(query_thd.new_zeros(start - end, width))
        rows.append(out)
        end = start + len(out)
    if end < len(query_thd):
        rows.append(query_thd.new_zeros(len(query_thd) - end, width))
    return torch.cat(rows)


class Gate(nn.Module):
    """residual + tanh(gate) * branch, in the place of Megatron-core's bias-dropout-add.

    Args:
        config: what its layers give this slot.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(1, dtype=config.params_dtype))
        # With sequence parallelism each rank sees part of the tokens, and gradients are summed.
        self.gate.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, training: bool, fused: bool) -> Callable:
        def add(
            branch_and_bias: tuple[Tensor | None, None], residual: Tensor, dropout: float
        ) -> Tensor:
            branch, _ = branch_and_bias
            if branch is None:
                return residual
            branch = torch.tanh(self.gate) * functional.dropout(branch, dropout, training)
            if branch.shape != residual.shape:
                return with_zero_gradient(residual, branch)
            return residual + branch

        return add
