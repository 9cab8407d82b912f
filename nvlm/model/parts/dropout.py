"""Dropout of the decoder, with Megatron-core's two streams of random numbers.

What tensor-parallel ranks have alike is zeroed alike, by the default stream; what each has a part
of, heads or with sequence parallelism tokens, by the stream of its own (`drawing_apart`).
Both begin anew with every step (`begin_step`): a step draws the same whatever was before it.

Megatron-core applies `hidden_dropout` where layers add to the residual. What enters the decoder is
zeroed here, behind the images: its embedding would draw for whole rows on every rank, of which the
ranks then keep parts, and gradients would come back through other zeros than were drawn.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext

from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn import functional

from nvlm.config.schema import RunConfig
from nvlm.parallel.groups import Parallel
from nvlm.platform.megatron_calls import draw_from, drawing_apart


def begin_step(config: RunConfig, parallel: Parallel, step: int) -> None:
    """Before the forward passes of a step; nothing where the configuration has no dropout.

    Ranks of one tensor-parallel group get one number: the tracker makes streams of it.
    """
    if not config.train.has_dropout:
        return
    place = (parallel.data_rank, parallel.context_rank, parallel.pipeline_rank)
    words = " ".join(map(str, (config.train.seed, step, *place)))
    # Below 2^63 with the tracker's offsets.
    draw_from(int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big"))


class HeadDropout:
    """Of attention weights: each rank has heads of its own."""

    def __init__(self, config: TransformerConfig):
        self._share = config.attention_dropout
        self._draws_apart = not config.sequence_parallel  # else the whole layer does

    def share(self, training: bool) -> float:
        """Of weights that are zeroed."""
        return self._share if training else 0.0

    def drawing(self, training: bool) -> AbstractContextManager[None]:
        """In which attention is to be computed."""
        if not self.share(training) or not self._draws_apart:
            return nullcontext()
        return drawing_apart()


def leave_embedding_whole(model: GPTModel) -> None:
    """What enters the decoder is zeroed by `drop_entering`."""
    if model.pre_process:
        model.embedding.embedding_dropout.p = 0.0


def drop_entering(row: Tensor, config: TransformerConfig, training: bool) -> Tensor:
    """The decoder's row [t, 1, h]; with sequence parallelism this rank's part of it."""
    if not training or not config.hidden_dropout:
        return row
    apart = config.sequence_parallel
    with drawing_apart() if apart else nullcontext():
        return functional.dropout(row, config.hidden_dropout)
