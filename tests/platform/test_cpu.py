"""The CPU platform: what Megatron-core's CUDA calls turn into, and its optimizer's arithmetic."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch

from nvlm import platform
from nvlm.platform import cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is off beside CUDA")


@pytest.fixture(autouse=True)
def active_platform():
    assert platform.current() is cpu
    assert cpu.is_active()


def test_cuda_factories_and_moves_land_on_the_cpu():
    assert torch.zeros(2, device="cuda").device.type == "cpu"
    assert torch.zeros(2, device=torch.device("cuda", 0)).device.type == "cpu"
    assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.ones(2).to("cuda:0", non_blocking=True).device.type == "cpu"
    assert torch.ones(2).to("cuda", torch.bfloat16).dtype == torch.bfloat16


def test_other_devices_are_left_alone():
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.zeros(2).to("meta").device.type == "meta"


def test_tensor_type_has_the_spelling_the_distributed_optimizer_expects():
    assert torch.zeros(1).type() == "torch.cuda.FloatTensor"
    assert torch.zeros(1, dtype=torch.bfloat16).type() == "torch.cuda.BFloat16Tensor"


def test_a_torchvision_for_another_torch_is_hidden(tmp_path, monkeypatch):
    """transformers imports it wherever it is, and would fail on it."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert importlib.util.find_spec("torchvision") is not None
    monkeypatch.setitem(sys.modules, "torchvision", None)  # so that the end of the test restores it
    monkeypatch.delitem(sys.modules, "torchvision")
    platform.current()
    assert importlib.util.find_spec("torchvision") is None


def test_optimizer_equals_torch_adamw(measure):
    torch.manual_seed(0)
    settings = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    ours = torch.nn.Parameter(torch.randn(64, 8))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizers = [cpu.GroupStepAdamW([ours], **settings), torch.optim.AdamW([theirs], **settings)]
    for _ in range(20):
        gradient = torch.randn(64, 8)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    # The same formula in another order of operations.
    error = float((ours - theirs).detach().abs().max())
    measure("20 AdamW steps on CPU, largest difference", "torch.optim.AdamW", error, 1e-6)
    assert optimizers[0].param_groups[0]["step"] == 20


def test_transformer_engine_is_refused():
    from nvlm.errors import ConfigError

    assert cpu.resolve_layer_implementation("auto", "bf16") == "local"
    with pytest.raises(ConfigError, match="transformer_engine"):
        cpu.resolve_layer_implementation("transformer_engine", "bf16")


def test_shim_refuses_to_hide_a_gpu(monkeypatch):
    monkeypatch.setattr(cpu, "_mode", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AssertionError, match="inactive"):
        cpu.activate()


def test_megatron_fusions_are_not_marked_for_the_compiler():
    """Marking them loads the compiler: seconds of every start. `torch.compile` stays whole."""
    program = """
import sys, torch
import nvlm.train.trainer
assert "megatron.core" in sys.modules
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
assert hasattr(torch.compile(lambda x: x), "_torchdynamo_orig_callable")
"""
    # Here another test may have imported Megatron-core before.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
