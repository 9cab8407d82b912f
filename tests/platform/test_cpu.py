"""The CPU platform: what Megatron-core's CUDA calls turn into."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from helpers import spawn, transformer_engine_steps

from nvlm import platform
from nvlm.errors import ConfigError
from nvlm.platform import cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is off beside CUDA")


@pytest.fixture(autouse=True)
def active_platform():
    assert platform.current() is cpu


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


def test_packages_for_gpus_are_hidden_from_megatron():
    """Transformer Engine's wheel is installed, and raises RuntimeError: its library is not."""
    folder = max(transformer_engine_steps.SOURCES.glob("*.*"), default=None)
    if folder is None:
        pytest.skip("needs Transformer Engine's Python: scripts/fetch_transformer_engine")
    program = (
        "from nvlm import platform; platform.current();"
        "from megatron.core.extensions.transformer_engine import HAVE_TE; print(HAVE_TE)"
    )
    environment = spawn.environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{folder}"
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    assert printed.stdout == "False\n"


def test_transformer_engine_is_refused():
    assert cpu.resolve_layer_implementation("auto", "bf16") == "local"
    with pytest.raises(ConfigError, match="transformer_engine"):
        cpu.resolve_layer_implementation("transformer_engine", "bf16")


def test_shim_refuses_to_hide_a_gpu(monkeypatch):
    monkeypatch.setattr(cpu, "_mode", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(AssertionError, match="inactive"):
        cpu.activate()
