"""NVIDIA GPUs: NCCL, fused kernels where they are installed. Changes nothing in torch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata

import torch

from nvlm.launch import launched
from nvlm.platform import environment, flight_recorder
from nvlm.platform.base import Copies
from nvlm.platform.layers import choose_layers
from nvlm.platform.machine import Machine


def activate() -> None:
    """Megatron-core is written for this device, but for what it cannot be imported with."""
    _why_transformer_engine_is_hidden()


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def device_name() -> str:
    return torch.cuda.get_device_name()


def facts() -> dict[str, str]:
    found = {
        "CUDA": f"{torch.version.cuda} as torch was built",
        "NCCL": ".".join(map(str, torch.cuda.nccl.version())),
        "cuDNN": ".".join(map(str, machine().cudnn)) or "none",
    }
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        free, total = torch.cuda.mem_get_info(number)
        found[f"GPU {number}"] = (
            f"{torch.cuda.get_device_name(number)}, compute capability {major}.{minor}, "
            f"{free / 2**30:,.1f} GiB free of {total / 2**30:,.1f} GiB"
        )
    settings = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("NCCL_", "TORCH_NCCL_", "CUDA_VISIBLE", "NVTE_"))
    }
    if settings:
        found["settings"] = ", ".join(f"{name}={value}" for name, value in settings.items())
    return found


def synchronize() -> None:
    torch.cuda.synchronize()


# Names of the distributions that bring packages with kernels.
_DISTRIBUTIONS = {
    "transformer_engine": "transformer_engine",
    "flash_attn": "flash-attn",
    "flash_attn_3": "flash-attn-3",
    "apex": "apex",
    "triton": "triton",
}
# Apex's extension for gradients of weights, a module of its own.
_WEIGHT_GRADIENTS = "fused_weight_gradient_mlp_cuda"


def machine() -> Machine:
    return _found()


@cache
def _found() -> Machine:
    packages, broken = {}, {}
    for package, distribution in _DISTRIBUTIONS.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[package] = metadata.version(distribution)
    if why := _why_transformer_engine_is_hidden():
        packages.pop("transformer_engine", None)
        broken["transformer_engine"] = why
    if importlib.util.find_spec(_WEIGHT_GRADIENTS):
        packages[_WEIGHT_GRADIENTS] = packages.get("apex", "0")
    # By its number: a process that has not been given its device yet would wake the first one.
    number = launched().local_rank
    return Machine(
        device=torch.cuda.get_device_name(number),
        capability=torch.cuda.get_device_capability(number),
        packages=packages,
        broken=broken,
        cudnn=_cudnn_version(torch.backends.cudnn.version() or 0),
        environment=dict(os.environ),
        memory_bytes=torch.cuda.get_device_properties(number).total_memory,
        c_compiler=os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "",
    )


def _cudnn_version(number: int) -> tuple[int, ...]:
    """91002 -> (9, 10, 2); before version 9 it was 8907 -> (8, 9, 7)."""
    major = 10000 if number >= 10000 else 1000
    return number // major, number % major // 100, number % 100


def distributed_backend() -> str:
    return "nccl"


def bind_local_rank(local_rank: int) -> None:
    torch.cuda.set_device(local_rank)


def resolve_layer_implementation(wanted: str, precision: str) -> str:
    environment.check(os.environ)
    return choose_layers(machine(), wanted, precision)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if tensor.is_cpu else tensor


@cache
def _copy_stream() -> torch.cuda.Stream:
    # By its number: the device of a new thread is the first one.
    return torch.cuda.Stream(device=launched().local_rank)


def copied_ahead(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    stream = _copy_stream()
    with torch.cuda.stream(stream):  # and on its device
        copy = pinned(tensor).to(stream.device, non_blocking=True)
        arrived = stream.record_event()

    def on_device() -> torch.Tensor:
        computing = torch.cuda.current_stream()
        computing.wait_event(arrived)
        # Its memory is the copying stream's, which may not use it again before this one is done.
        copy.record_stream(computing)
        return copy

    return on_device


def moment() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
    return first.elapsed_time(second) / 1e3


@cache
def _why_transformer_engine_is_hidden() -> str:
    """What its import says where it is installed and cannot be imported; else "".

    Hidden, because Megatron-core imports it wherever it is installed, also for local layers, and
    expects an ImportError alone: other errors come where it is built for another torch or CUDA.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return ""
    try:
        importlib.import_module("transformer_engine.pytorch")
    except Exception as error:
        for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
            del sys.modules[name]
        sys.modules["transformer_engine"] = None  # type: ignore[assignment]
        return str(error) or type(error).__name__
    return ""


def host_buffer(num_bytes: int) -> torch.Tensor:
    """Pinned in its place: torch's own pinned memory comes in powers of two."""
    buffer = torch.empty(num_bytes, dtype=torch.uint8)
    # Where the system refuses to pin as much, copies are waited for and nothing else changes.
    torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), num_bytes, 0)
    return buffer


def copy_beside(copy: Callable[[], None]) -> Copies:
    """A stream of its own copies; the one that computes waits for it where it is held."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    copied = torch.cuda.Event()
    with torch.cuda.stream(stream):
        copy()
        copied.record(stream)
    return Copies(
        hold=lambda: torch.cuda.current_stream().wait_event(copied), wait=copied.synchronize
    )


def join_thread() -> None:
    """A thread begins with the first device, whichever this process has."""
    bind_local_rank(launched().local_rank)


def release_memory() -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    return torch.cuda.max_memory_allocated()


def free_memory_bytes() -> int:
    free, _ = torch.cuda.mem_get_info()
    # And what torch holds of tensors that are gone.
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def last_collectives() -> list[flight_recorder.Collective]:
    from torch._C import _distributed_c10d

    return flight_recorder.read(getattr(_distributed_c10d, "_dump_nccl_trace_json", None))
