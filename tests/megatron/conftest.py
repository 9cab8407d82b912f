"""Megatron-core as it is without our corrections."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass

import pytest

PROGRAM = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from megatron.core import optimizer
    from megatron.core.models import gpt
    from megatron.core.optimizer import distrib_optimizer
import torch
print(json.dumps({
    "warnings": [str(warning.message) for warning in seen],
    "loads_compiler": "torch._inductor" in sys.modules or "torch._dynamo" in sys.modules,
    "loads_symbols": "torch.distributed.tensor" in sys.modules and "sympy" in sys.modules,
    "takes_torch_adam": [
        optimizer.Adam is torch.optim.AdamW,
        optimizer.USING_PYTORCH_OPTIMIZER,
        not distrib_optimizer.HAVE_APEX_OR_TE,
    ],
}))
"""


@dataclass(frozen=True)
class PlainImport:
    """What a process that does nothing but import Megatron-core finds out about it."""

    warnings: list[str]
    loads_compiler: bool
    loads_symbols: bool
    takes_torch_adam: list[bool]


@pytest.fixture(scope="session")
def plain_import() -> PlainImport:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=300
    )
    return PlainImport(**json.loads(done.stdout.splitlines()[-1]))
