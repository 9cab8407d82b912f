"""Attention on torch's scaled_dot_product_attention: full, causal, or causal within documents.

With `model.visual_attention: bidirectional` (Croc, arXiv 2410.14332, section 3: mixed attention)
the tokens of a run of image tokens see each other both ways, and text stays causal.

Shape suffixes: s query positions, k key positions, b batch, h query heads, g key/value heads (a
divisor of h), d channels per head, t packed positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.nn import functional

from nvlm.batch import MicroBatch, Run
from nvlm.model.parts.cache import Decode, Prefill
from nvlm.model.parts.context_attention import attend_in_context
from nvlm.model.parts.dropout import HeadDropout
from nvlm.model.parts.token_kinds import TokenKinds


class RotatedSelfAttention(SelfAttention):
    """Megatron-core's, for layers that rotate queries and keys: what was rotated is not kept.

    There the values are a view of one tensor with queries and keys, and keep all of it alive until
    the backward pass, beside the rotated ones. And its caches give all questions of a batch one
    length: those of `nvlm.model.parts.cache` attend by themselves.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        *arguments: Any,
        inference_context: Any = None,
        rotary_pos_emb: Any = None,
        **named: Any,
    ) -> tuple[Tensor, Tensor]:
        if not isinstance(inference_context, Prefill | Decode):
            return super().forward(
                hidden_states,
                attention_mask,
                *arguments,
                inference_context=inference_context,
                rotary_pos_emb=rotary_pos_emb,
                **named,
            )
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        return self.linear_proj(inference_context.attend(self, query, key, value, rotary_pos_emb))

    def get_query_key_value_tensors(self, *arguments: Any, **named: Any) -> Any:
        # Three where attention has no output gate and nothing fuses the rotation, as here.
        query, key, value = cast("Any", super().get_query_key_value_tensors(*arguments, **named))
        return query, key, value.contiguous()


@dataclass
class PackedDocuments(PackedSeqParams):
    """Documents as Megatron-core's and Transformer Engine's attention read them, and as ours does:
    their starts and the number of tokens in host memory, so that no layer has to ask a device."""

    starts: tuple[int, ...] = ()
    image_runs: tuple[Run, ...] = ()  # whose tokens see each other both ways; the others causally
    kinds: TokenKinds | None = None  # where layers have weights of images (`visual_weights`)
    # With context parallelism; see `nvlm.batch.RowPart`.
    row_order: Tensor | None = None


def packed_documents(
    micro_batch: MicroBatch, sees_both_ways: bool = False, has_visual_weights: bool = False
) -> PackedDocuments:
    """Those of a micro-batch.

    Args:
        sees_both_ways: image tokens see those of their run that follow, too.
        has_visual_weights: layers have weights of their own for image tokens.
    """
    kinds = None
    if has_visual_weights:
        kinds = TokenKinds.of(micro_batch.image_positions, micro_batch.tokens.shape[1])
    starts, longest = micro_batch.cu_seqlens, micro_batch.max_document_length
    return PackedDocuments(
        qkv_format="thd",
        cu_seqlens_q=starts,
        cu_seqlens_kv=starts,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        starts=micro_batch.document_starts,
        image_runs=(micro_batch.image_runs or ()) if sees_both_ways else (),
        kinds=kinds,
        row_order=None if micro_batch.part is None else micro_batch.part.row_order,
    )


class SdpaAttention(nn.Module):
    """In the place of Megatron-core's local `DotProductAttention`, which refuses packed sequences.

    With `packed_seq_params` (format `thd`) every document attends causally to itself only. Without,
    the layer's mask type decides: causal over the whole sequence, or no mask at all. Causal is but
    for `image_runs`, whose tokens see all of their run.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        pg_collection: Any = None,
        **_: object,
    ):
        super().__init__()
        assert attention_type == "self", "only self-attention is built here"
        self.attn_mask_type = attn_mask_type
        self.softmax_scale = softmax_scale
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None
        self._dropout = HeadDropout(config)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedDocuments | None = None,
        image_runs: Sequence[Run] = (),
    ) -> Tensor:
        """query_sbhd, key_kbgd, value_kbgd -> [s, b, h*d]; packed: query_thd ... -> [t, h*d]."""
        assert attention_mask is None and attention_bias is None, "masks follow from the documents"
        with self._dropout.drawing(self.training):
            if packed_seq_params is not None:
                return self._packed(query, key, value, packed_seq_params)
            return self._whole(query, key, value, attn_mask_type, image_runs)

    def _whole(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask_type: AttnMaskType | None,
        image_runs: Sequence[Run],
    ) -> Tensor:
        causal = (attn_mask_type or self.attn_mask_type) == AttnMaskType.causal
        # With a cache, Megatron-core drops the mask: a single new token sees all that came before.
        assert not causal or query.shape[0] == key.shape[0]
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if causal:
            out_bhsd = self._causal(query, key, value, image_runs)
        else:
            out_bhsd = self._attend(query, key, value, causal=False)
        return out_bhsd.permute(2, 0, 1, 3).flatten(2)

    def _packed(
        self, query_thd: Tensor, key_tgd: Tensor, value_tgd: Tensor, packed: PackedDocuments
    ) -> Tensor:
        """One call per document: exact, no mask of t x t, and no work across documents."""
        assert self.attn_mask_type == AttnMaskType.causal and packed.qkv_format == "thd"
        if self.context_group is not None:
            assert packed.row_order is not None and not packed.image_runs
            return attend_in_context(
                query_thd,
                key_tgd,
                value_tgd,
                packed.starts,
                packed.row_order,
                self.softmax_scale,
                self.context_group,
            ).flatten(1)
        outputs = []
        for start, end in pairwise(packed.starts):
            query, key, value = (
                tensor[start:end].transpose(0, 1).unsqueeze(0)
                for tensor in (query_thd, key_tgd, value_tgd)
            )
            runs = [
                (max(first, start) - start, min(last, end) - start)
                for first, last in packed.image_runs
                if first < end and last > start
            ]
            outputs.append(self._causal(query, key, value, runs)[0].transpose(0, 1))
        return torch.cat(outputs).flatten(1)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run]) -> Tensor:
        """`_attend`, causal but for the runs, each of which is asked once more, and without a mask.

        What the first call has of them is not used. It costs less than a mask would: kernels for
        any mask read all pairs of tokens, and have no grouped queries.
        """
        causal = self._attend(query, key, value, causal=True)
        parts, done = [], 0
        for start, end in runs:
            seen = key[:, :, :end], value[:, :, :end]
            both_ways = self._attend(query[:, :, start:end], *seen, causal=False)
            parts += [causal[:, :, done:start], both_ways]
            done = end
        return torch.cat([*parts, causal[:, :, done:]], dim=2) if parts else causal

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        """query_bhsd, key_bgkd, value_bgkd -> [b, h, s, d]; the softmax is taken in fp32."""
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=self._dropout.share(self.training),
            is_causal=causal,
            scale=self.softmax_scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
