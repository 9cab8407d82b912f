"""Calls of Megatron-core that name a device and are the same on every one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import torch

# Arguments of `initialize_model_parallel` and of `get_megatron_optimizer`: no second set of process
# groups for tensors in host memory. Nothing here sends any.
GROUP_ARGUMENTS: Mapping[str, Any] = MappingProxyType({"create_gloo_process_groups": False})
OPTIMIZER_ARGUMENTS: Mapping[str, Any] = MappingProxyType({"use_gloo_process_groups": False})


def seed_random_numbers(value: int) -> None:
    """Seed torch and Megatron-core's random-number tracker. Call after the process groups exist."""
    # Not before the platform is active, which whoever made the process groups saw to.
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.manual_seed(value)
    model_parallel_cuda_manual_seed(value, force_reset_rng=True)


def drawing_apart() -> AbstractContextManager[None]:
    """In which a tensor-parallel rank draws numbers that the others do not."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    return get_cuda_rng_tracker().fork()


def draw_from(value: int) -> None:
    """Let the device's random numbers, of the tracker's streams too, go on from `value`."""
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(value)
