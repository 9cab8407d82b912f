"""Environment variables that decide how a GPU is used: what is set here, and what is refused.

This file imports no torch: some variables are read when torch first asks for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from nvlm.errors import ConfigError

# With a single hardware queue, collectives start in the order in which they are issued, so that
# they overlap with the computation that follows (megatron-core, tensor_parallel/layers.py).
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
# The allocator's settings, under the present name and under the one before.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# Segments that grow: the number of tiles changes from step to step, and blocks of fixed segments
# that fit one number are in the way of the next.
EXPANDABLE = "expandable_segments:True"

_ATTENTION = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


def set_defaults() -> None:
    """Set what the user did not; before torch is asked whether there is a GPU."""
    for name, value in missing(os.environ).items():
        os.environ[name] = value


def missing(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that the user left to us, with their values."""
    values = {} if QUEUES in environment else {QUEUES: "1"}
    if not any(name in environment for name in ALLOCATOR):
        values[ALLOCATOR[0]] = EXPANDABLE
    return values


def check(environment: Mapping[str, str]) -> None:
    """Refuse what Megatron-core would end with a failed assertion on.

    Raises:
        ConfigError: names the variables.
    """
    wrong = [
        f"{name}={environment[name]}" for name in _ATTENTION if environment.get(name, "1") != "1"
    ]
    if wrong:
        raise ConfigError(
            f"the environment has {' and '.join(wrong)}, which Megatron-core refuses: unset it; "
            "nvlm chooses the attention itself and says at the start which one"
        )
