"""The values that decisions about kernels are made from."""

from __future__ import annotations

import torch

from nvlm import platform


def test_this_machine_is_described():
    found = platform.current().machine()
    assert found.has_gpu == torch.cuda.is_available()
    assert found.device == platform.current().device_name()
