"""Why Megatron-core is first imported inside `nothing_unused`, and what works after that."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_plain_import_loads_distributed_tensors(plain_import):
    assert plain_import.loads_symbols


def test_a_training_process_loads_what_it_uses():
    """The packages that Megatron-core did without are whole for whoever asks for them."""
    program = """
import sys
import nvlm.train.fit
from nvlm.data.text.chat import load_chat_tokenizer
load_chat_tokenizer("assets/tiny/qwen2", "<|vision_pad|>")
assert "megatron.core" in sys.modules
unused = ["sympy", "torch.distributed.tensor", "torch.distributed.checkpoint", "tensorboard",
          "transformers", "pyarrow", "pandas"]
assert not [name for name in unused if name in sys.modules]

from torch.distributed import checkpoint
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.tensorboard import SummaryWriter
from megatron.core.transformer import fsdp_dtensor_checkpoint
assert fsdp_dtensor_checkpoint.default_planner.DefaultLoadPlanner is checkpoint.DefaultLoadPlanner
"""
    # Here another test may have imported Megatron-core before.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
