"""Why Megatron-core gets an AdamW of ours without a GPU, and that it is AdamW."""

from __future__ import annotations

import pytest
import torch
from helpers import layout_steps, small_model

from nvlm.megatron.group_step_adam import GroupStepAdamW

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_plain_megatron_takes_torch_adam(plain_import):
    assert plain_import.takes_torch_adam == [True, True, True]


def test_torch_adam_cannot_be_resumed(parallel, monkeypatch):
    """As a resumed run asks for it: before any step."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    run = layout_steps.TwoSteps(small_model.small_config(), parallel).training
    weights = run.chunks[0].module.sharded_state_dict(metadata=dict(metadata))
    state = run.optimizer.sharded_state_dict(
        {"model0": weights}, is_loading=True, metadata=dict(metadata)
    )
    assert state["param_state"]

    monkeypatch.setattr(optimizer, "Adam", torch.optim.AdamW)
    monkeypatch.setattr(distrib_optimizer, "Adam", torch.optim.AdamW)
    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", True)
    monkeypatch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", False)
    plain = layout_steps.TwoSteps(small_model.small_config(), parallel).training
    weights = plain.chunks[0].module.sharded_state_dict(metadata=dict(metadata))
    with pytest.raises(AssertionError):
        plain.optimizer.sharded_state_dict(
            {"model0": weights}, is_loading=True, metadata=dict(metadata)
        )


def test_optimizer_equals_torch_adamw(measure):
    torch.manual_seed(0)
    settings = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    ours = torch.nn.Parameter(torch.randn(64, 8))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = [GroupStepAdamW([ours], **settings), torch.optim.AdamW([theirs], **settings)]
    for _ in range(20):
        gradient = torch.randn(64, 8)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    # The same formula in another order of operations.
    error = float((ours - theirs).detach().abs().max())
    measure("20 AdamW steps on CPU, largest difference", "torch.optim.AdamW", error, 1e-6)
    assert optimizers[0].param_groups[0]["step"] == 20
