"""Why the norm of all gradients is ours where Megatron-core has no fused one."""

from __future__ import annotations

import torch
from helpers.synchronisations import counted
from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_l2_norm

from nvlm.megatron.gradient_norm import use_norm_on_device


def test_same_norm_and_one_question_in_all(parallel, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(100, generator=generator) for _ in range(20)]
    norms, asked = [], []
    monkeypatch.setattr(clip_grads, "l2_norm_impl", local_multi_tensor_l2_norm)
    for prepare in (lambda: None, use_norm_on_device):
        prepare()
        with counted() as found:
            norm = clip_grads.get_grad_norm_fp32(
                gradients, grad_stats_parallel_group=parallel.groups.dp
            )
        norms.append(norm)
        asked.append(sum(found.values()))
    assert norms[0] == norms[1]
    assert asked[0] > len(gradients) and asked[1] == 1


def test_a_fused_norm_is_left_alone(monkeypatch):
    fused = object()
    monkeypatch.setattr(clip_grads, "l2_norm_impl", fused)
    use_norm_on_device()
    assert clip_grads.l2_norm_impl is fused
