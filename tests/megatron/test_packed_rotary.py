"""Why the unfused rotary embedding of packed documents is replaced, and that it stays the same."""

from __future__ import annotations

import pytest
import torch
from helpers.synchronisations import counted
from megatron.core.models.common.embeddings import rope_utils

from nvlm.megatron.packed_rotary import positions_in_documents, use_rows_from_device

plain = rope_utils._apply_rotary_pos_emb_thd


@pytest.fixture
def ours(monkeypatch):
    monkeypatch.setattr(rope_utils, "_apply_rotary_pos_emb_thd", plain)
    use_rows_from_device()
    return rope_utils._apply_rotary_pos_emb_thd


@pytest.mark.parametrize("documents", [[5, 1, 7], [13]], ids=["packed", "one"])
def test_same_values_and_gradients_without_asking_the_device(documents, ours, parallel):
    generator = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *documents]).cumsum(0).to(torch.int32)
    angles = torch.randn(max(documents), 1, 1, 8, generator=generator)
    values = torch.randn(sum(documents), 2, 8, generator=generator)
    results, asked = [], []
    for rotate in (plain, ours):
        heads = values.clone().requires_grad_()
        with counted() as found:
            rotated = rotate(heads, starts, angles, cp_group=parallel.groups.cp)
        (rotated * values).sum().backward()
        results.append((rotated, heads.grad))
        asked.append(sum(found.values()))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert asked[0] >= 2 and asked[1] == 0


def test_positions_restart_in_each_document():
    starts = torch.tensor([0, 3, 4, 6], dtype=torch.int32)
    assert positions_in_documents(starts, 6).tolist() == [0, 1, 2, 0, 0, 1]
