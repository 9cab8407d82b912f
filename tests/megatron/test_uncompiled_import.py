"""Why Megatron-core is first imported inside `nothing_compiled`, and that it then works."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_plain_import_loads_the_compiler(plain_import):
    assert plain_import.loads_compiler


def test_a_training_process_loads_no_compiler():
    """`torch.compile` itself stays whole."""
    program = """
import sys, torch
import nvlm.train.fit
assert "megatron.core" in sys.modules
assert "torch._inductor" not in sys.modules and "torch._dynamo" not in sys.modules
assert hasattr(torch.compile(lambda x: x), "_torchdynamo_orig_callable")
"""
    # Here another test may have imported Megatron-core before.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
