"""NVIDIA GPUs: NCCL, fused kernels where they are installed. Changes nothing in torch."""

from __future__ import annotations

import importlib.util
import os

import torch


def activate() -> None:
    """Megatron-core is written for this device; one setting that it recommends is made here.

    With a single hardware queue, collectives start in the order in which they are issued, so that
    they overlap with the computation that follows (megatron-core, tensor_parallel/layers.py).
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def device_name() -> str:
    return torch.cuda.get_device_name()


def distributed_backend() -> str:
    return "nccl"


def bind_local_rank(local_rank: int) -> None:
    torch.cuda.set_device(local_rank)


def seed(value: int) -> None:
    """Seed Megatron-core's random-number tracker. Call after the process groups exist."""
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.manual_seed(value)
    model_parallel_cuda_manual_seed(value)


def group_kwargs() -> dict:
    """Arguments of `initialize_model_parallel`: no second set of groups for tensors on the CPU."""
    return {"create_gloo_process_groups": False}


def optimizer_kwargs() -> dict:
    """Arguments of `get_megatron_optimizer` that depend on the device."""
    return {"use_gloo_process_groups": False}


def resolve_layer_implementation(wanted: str) -> str:
    """`auto` -> `transformer_engine` where it is installed, else `local`."""
    if wanted != "auto":
        return wanted
    found = importlib.util.find_spec("transformer_engine") is not None
    return "transformer_engine" if found else "local"


def peak_memory_bytes() -> int:
    return torch.cuda.max_memory_allocated()


def synchronize() -> None:
    torch.cuda.synchronize()
