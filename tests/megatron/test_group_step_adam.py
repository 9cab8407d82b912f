"""Why Megatron-core gets an AdamW of ours where it has no fused one, and that it is AdamW."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import layout_steps, small_model

from nvlm.megatron import group_step_adam
from nvlm.megatron.group_step_adam import GroupStepAdamW
from nvlm.train import optim

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@pytest.fixture
def plain_megatron(monkeypatch):
    """Megatron-core's optimizer as it imports it where Transformer Engine and Apex are missing."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    monkeypatch.setattr(optimizer, "Adam", torch.optim.AdamW)
    monkeypatch.setattr(distrib_optimizer, "Adam", torch.optim.Adam)
    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", True)
    monkeypatch.setattr(distrib_optimizer, "HAVE_APEX_OR_TE", False)


@without_gpu
def test_plain_megatron_takes_torch_adam(plain_import):
    assert plain_import.takes_torch_adam == [True, True, True]


def test_torch_adam_cannot_be_resumed(parallel, plain_megatron, monkeypatch):
    """As a resumed run asks for it: before any step."""
    monkeypatch.setattr(optim, "use_group_step_adam", lambda: None)
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    plain = layout_steps.TwoSteps(small_model.small_config(), parallel).training
    weights = plain.chunks[0].module.sharded_state_dict(metadata=dict(metadata))
    with pytest.raises(AssertionError):
        plain.optimizer.sharded_state_dict(
            {"model0": weights}, is_loading=True, metadata=dict(metadata)
        )


def test_a_run_resumes_whatever_the_platform_left(parallel, plain_megatron, tmp_path: Path):
    """The optimizer is chosen where it is built: no device has to do that before."""
    config = small_model.small_config(f"run.dir={tmp_path}", *layout_steps.OPTIMIZER)
    whole = layout_steps.TwoSteps(config, parallel)
    whole.take()
    whole.training.save()
    whole.take()
    resumed = layout_steps.TwoSteps(config, parallel)
    resumed.load(tmp_path)
    resumed.take()
    assert torch.equal(resumed.losses[2], whole.losses[2])


def test_a_fused_optimizer_is_left_alone(plain_megatron, monkeypatch):
    from megatron.core import optimizer

    monkeypatch.setattr(optimizer, "USING_PYTORCH_OPTIMIZER", False)
    group_step_adam.use_group_step_adam()
    assert optimizer.Adam is torch.optim.AdamW


@pytest.mark.parametrize("update", ["_update_one_by_one", "_update_fused"])
def test_optimizer_equals_torch_adamw(update, measure, monkeypatch):
    """Torch has the fused kernel for both devices, so that a GPU's way is taken here too."""
    monkeypatch.setattr(group_step_adam, "_update_one_by_one", getattr(group_step_adam, update))
    error, optimizer = worst_difference("cpu")
    # The same formula in another order of operations.
    measure(
        f"20 AdamW steps on CPU, {update}, largest difference", "torch.optim.AdamW", error, 1e-6
    )
    assert optimizer.param_groups[0]["step"] == 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_optimizer_on_a_gpu_equals_torch_adamw(measure):
    error, _ = worst_difference("cuda")
    measure("20 AdamW steps on a GPU, largest difference", "torch.optim.AdamW", error, 1e-6)


def test_it_does_not_load_the_compiler():
    """As torch's own methods do when they are first called: half a second of every start."""
    program = """if True:
        import sys, torch
        from nvlm.megatron.group_step_adam import GroupStepAdamW
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = GroupStepAdamW([parameter])
        parameter.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.load_state_dict(optimizer.state_dict())
        before = "torch._dynamo" in sys.modules
        torch.optim.AdamW([parameter])
        print(before, "torch._dynamo" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False", "True"]


def worst_difference(device: str) -> tuple[float, GroupStepAdamW]:
    torch.manual_seed(0)
    settings = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    ours = torch.nn.Parameter(torch.randn(64, 8).to(device))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizer, reference = (
        GroupStepAdamW([ours], **settings),
        torch.optim.AdamW([theirs], **settings),
    )
    for _ in range(20):
        gradient = torch.randn(64, 8).to(device)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    return float((ours - theirs).detach().abs().max()), optimizer
