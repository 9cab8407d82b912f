"""Attention whose chunks are put together, on one process: outputs and gradients of torch's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from nvlm.model.parts.context_attention import attend_in_context

STARTS = [0, 24, 26, 66]
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", BOUNDS, ids=["fp32", "bf16"])
def test_same_as_torchs_attention(dtype, parallel, measure):
    generator = torch.Generator().manual_seed(0)

    def random(heads: int) -> torch.Tensor:
        values = torch.randn(STARTS[-1], heads, 16, generator=generator)
        return values.to(dtype).requires_grad_()

    query, key, value = random(4), random(2), random(2)
    upstream = torch.randn(STARTS[-1], 4, 16, generator=generator).to(dtype)
    row_order = torch.arange(STARTS[-1])
    ours = attend_in_context(query, key, value, STARTS, row_order, 0.3, parallel.groups.cp)
    found = torch.autograd.grad(ours, (query, key, value), upstream)
    truths = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    outputs = [
        functional.scaled_dot_product_attention(
            *(tensor[start:end].transpose(0, 1) for tensor in truths),
            is_causal=True,
            scale=0.3,
            enable_gqa=True,
        ).transpose(0, 1)
        for start, end in pairwise(STARTS)
    ]
    truth = torch.cat(outputs)
    wanted = torch.autograd.grad(truth, truths, upstream.double())
    worst = max(
        float((a.double() - b).norm() / b.norm())
        for a, b in zip((ours, *found), (truth, *wanted), strict=True)
    )
    what = f"attention of a context-parallel rank, {str(dtype).removeprefix('torch.')}"
    measure(what, "torch's attention in fp64", worst, BOUNDS[dtype])
