"""Which token comes next, from the logits of all open questions.

A draw is one number between 0 and 1 from the question's own generator on the host, and the token
is the first at which the probabilities, added up in the order of ids, exceed it. So what is drawn
depends on a question's logits and seed alone: not on what is answered beside it, nor on the device
or the layout.

Shape suffixes: b questions, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nvlm import platform
from nvlm.generate.request import Sampling


class Drawing:
    """One question's draws, one after another."""

    def __init__(self, sampling: Sampling):
        self.sampling = sampling
        self._generator = np.random.Generator(np.random.PCG64(sampling.seed % 2**64))

    def next(self) -> float:
        return self._generator.random()


def choose_tokens(logits_bv: Tensor, drawings: Sequence[Drawing]) -> Tensor:
    """[b] int64: the next token of each question. Nothing here waits for the device."""
    logits_bv = logits_bv.float()
    # Of equal logits the first.
    likeliest = logits_bv.argmax(-1)
    sampled = [i for i, drawing in enumerate(drawings) if drawing.sampling.temperature > 0]
    if not sampled:
        return likeliest
    rows = [
        [
            drawings[i].sampling.temperature,
            drawings[i].sampling.top_p,
            drawings[i].sampling.top_k or logits_bv.shape[-1],
            drawings[i].next(),
        ]
        for i in sampled
    ]
    here = platform.current()
    settings = here.pinned(torch.tensor(rows, dtype=torch.float64))
    settings = settings.to(logits_bv.device, non_blocking=True)
    places = here.pinned(torch.tensor(sampled)).to(logits_bv.device, non_blocking=True)
    kept = probabilities(logits_bv.index_select(0, places), *settings[:, :3].unbind(-1))
    return likeliest.index_copy(0, places, drawn(kept, settings[:, 3]))


def probabilities(logits_bv: Tensor, temperature: Tensor, top_p: Tensor, top_k: Tensor) -> Tensor:
    """[b, v] float64, in fp32 precision and each row summing to 1 but for rounding.

    The order is that of transformers' processors: temperature, then top-k, then top-p, which is of
    what top-k left. At least one token stays.

    Args:
        temperature, top_p, top_k: [b] float64; top_k is v for all.
    """
    # The largest first taken off: a temperature near zero makes no infinities that way.
    lead = logits_bv - logits_bv.amax(-1, keepdim=True)
    scaled = (lead / temperature[:, None]).float()
    ordered, ids = scaled.sort(stable=True, dim=-1, descending=True)
    ranks = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = ordered.masked_fill(ranks[None] >= top_k[:, None], float("-inf"))
    shares = ordered.softmax(-1).double()
    before = shares.cumsum(-1) - shares
    # Without top-p all stay, whatever rounding makes of their sum.
    is_beyond = (before >= top_p[:, None]) & (top_p[:, None] < 1) & (ranks[None] > 0)
    shares = shares.masked_fill(is_beyond, 0.0)
    shares = shares / shares.sum(-1, keepdim=True)
    return torch.zeros_like(shares).scatter(-1, ids, shares)


def drawn(probabilities_bv: Tensor, draws: Tensor) -> Tensor:
    """[b] int64: where the probabilities added up first exceed the draws [b] in [0, 1)."""
    sums = probabilities_bv.cumsum(-1)
    # Below the whole sum, which rounding makes a little more or less than 1: some id exceeds it.
    whole = sums[:, -1:]
    goals = torch.minimum(draws[:, None] * whole, whole.nextafter(torch.zeros_like(whole)))
    return (sums <= goals).sum(-1)
