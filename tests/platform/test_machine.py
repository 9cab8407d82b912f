"""The values that decisions about kernels are made from."""

from __future__ import annotations

import pytest
import torch

from nvlm import platform
from nvlm.platform import cuda


def test_this_machine_is_described():
    found = platform.current().machine()
    assert found.has_gpu == torch.cuda.is_available()
    assert found.device == platform.current().device_name()


@pytest.mark.parametrize(
    "number, version", [(91002, (9, 10, 2)), (90600, (9, 6, 0)), (8907, (8, 9, 7))]
)
def test_cudnn_version(number, version):
    assert cuda._cudnn_version(number) == version
