"""Environment variables for a GPU: set in time, never over the user's; some are refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nvlm import platform
from nvlm.errors import ConfigError
from nvlm.platform import environment


def test_what_the_user_left_out_is_set():
    assert environment.missing({}) == {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_the_user_set_stays(name):
    of_user = {name: "max_split_size_mb:512", "CUDA_DEVICE_MAX_CONNECTIONS": "8"}
    assert environment.missing(of_user) == {}


@pytest.mark.parametrize("name", ["NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"])
def test_what_megatron_refuses_is_told_by_name(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    platform.current().resolve_layer_implementation("auto", "bf16")
    monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=f"{name}=0.*unset it"):
        platform.current().resolve_layer_implementation("auto", "bf16")


def test_settings_are_made_before_anyone_asks_for_a_gpu():
    """As on a machine with one, up to the question; torch here may be built without CUDA."""
    program = """
import os, torch
seen = {}
def is_available():
    seen.update(os.environ)
    return False
torch.cuda.is_available, torch.version.cuda = is_available, "13.0"
for name in ("CUDA_DEVICE_MAX_CONNECTIONS", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
    os.environ.pop(name, None)
from nvlm import platform
platform.current()
assert seen["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"
assert seen["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
