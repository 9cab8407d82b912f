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

_VISIBLE = "CUDA_VISIBLE_DEVICES"
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


def devices_of_slot(
    environment: Mapping[str, str], slot: int, num_slots: int, num_each: int
) -> dict[str, str]:
    """What gives programs that run side by side on this machine devices of their own.

    Args:
        slot: number of the program, from 0 to `num_slots` - 1.
        num_each: devices of each.

    Returns:
        variables; none where there are no GPUs.

    Raises:
        ConfigError: there are GPUs, and fewer than all programs need.
    """
    import torch

    if not torch.cuda.is_available():
        return {}
    named = environment.get(_VISIBLE)
    devices = named.split(",") if named else [str(n) for n in range(torch.cuda.device_count())]
    if len(devices) < num_slots * num_each:
        raise ConfigError(
            f"{num_slots} runs of {num_each} processes side by side need {num_slots * num_each} "
            f"GPUs, and there are {len(devices)}: ask for fewer at a time"
        )
    return {_VISIBLE: ",".join(devices[slot * num_each : (slot + 1) * num_each])}
