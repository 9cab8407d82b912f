"""Real Megatron-core on a CPU.

Megatron-core names the CUDA device in hundreds of places. `activate` makes them land on the CPU:
a `TorchFunctionMode` rewrites the device in factory calls, `.to` and `.cuda`; streams and
synchronisation do nothing; and random-number state comes from the CPU generator. Corrections that
only a CPU needs are put in place as well (nvlm/megatron/). Nothing here runs where CUDA is
available.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from nvlm.launch import num_local_processes
from nvlm.megatron.uncompiled_import import nothing_compiled
from nvlm.megatron.unused_imports import nothing_unused
from nvlm.platform import environment, flight_recorder
from nvlm.platform.base import HOST_BACKEND, Copies
from nvlm.platform.layers import choose_layers
from nvlm.platform.machine import Machine

_mode: _CudaLandsOnCpu | None = None


def activate() -> None:
    """Install the shim once per process.

    Raises:
        AssertionError: CUDA is available; the shim must never hide a GPU.
    """
    global _mode
    if _mode is not None:
        return
    assert not torch.cuda.is_available(), "the CPU shim must stay inactive on a CUDA machine"
    _patch_torch_cuda()
    _hide_packages_for_gpus()
    with warnings.catch_warnings():
        # Megatron-core says at import that Transformer Engine and Apex are missing: known here.
        warnings.simplefilter("ignore")
        _patch_megatron()
    _mode = _CudaLandsOnCpu()
    _mode.__enter__()


def device() -> torch.device:
    return torch.device("cpu")


def device_name() -> str:
    num_threads = torch.get_num_threads()
    return f"CPU ({num_threads} thread{'s' * (num_threads != 1)})"


def machine() -> Machine:
    return Machine(device_name())


def facts() -> dict[str, str]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "device": "no GPU that torch sees: runs go on the CPU",
        "processor cores": f"{len(os.sched_getaffinity(0))} for this process",
        "memory": f"{memory.available / 2**30:,.1f} GiB free of {memory.total / 2**30:,.1f} GiB",
    }


def synchronize() -> None:
    """Everything has happened."""


def distributed_backend() -> str:
    return HOST_BACKEND


def bind_local_rank(local_rank: int) -> None:
    """All ranks share the CPU."""


def resolve_layer_implementation(wanted: str, precision: str) -> str:
    """Transformer Engine needs CUDA, so `auto` is `local` here; asking for it is refused."""
    environment.check(os.environ)
    return choose_layers(machine(), wanted, precision)


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """Nothing is copied anywhere."""
    return tensor


def copied_ahead(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """It is there."""
    return lambda: tensor


def moment() -> float:
    """The clock's: what was asked for is done."""
    return time.perf_counter()


def seconds_between(first: float, second: float) -> float:
    return second - first


def host_buffer(num_bytes: int) -> torch.Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8)


def copy_beside(copy: Callable[[], None]) -> Copies:
    """The thread that waits for the copies makes them: of a CPU, nobody else could."""
    copied = threading.Event()

    def wait() -> None:
        try:
            copy()
        finally:
            copied.set()

    return Copies(hold=copied.wait, wait=wait)


def join_thread() -> None:
    """torch's modes belong to a thread."""
    _CudaLandsOnCpu().__enter__()


def release_memory() -> None:
    """The system's allocator has its own ways, and the process's peak stays."""


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes() -> int:
    import psutil

    return psutil.virtual_memory().available // num_local_processes()


def last_collectives() -> list[flight_recorder.Collective]:
    from torch._C import _distributed_c10d

    return flight_recorder.read(getattr(_distributed_c10d, "_dump_fr_trace_json", None))


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))


class _CudaLandsOnCpu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0]
        wanted = kwargs.get("device")
        if wanted is not None and (_is_cuda(wanted) or type(wanted) is int):
            kwargs = {**kwargs, "device": "cpu"}
        if func is torch.Tensor.to:
            # A bare integer is a CUDA ordinal; booleans are `non_blocking` and `copy`.
            moved = ("cpu" if _is_cuda(a) or type(a) is int else a for a in args[1:])
            args = (args[0], *moved)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The distributed optimizer sorts parameters by this string's CUDA spelling.
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


class _Stream:
    """A stream in which everything has already happened, and an event that has."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *_: Any) -> _Stream:
        return self


def _patch_torch_cuda() -> None:
    cuda = torch.cuda
    stream = _Stream()
    replacements = {
        "current_device": lambda: torch.device("cpu"),
        "set_device": lambda *_: None,
        "synchronize": lambda *_: None,
        "current_stream": lambda *_: stream,
        "Stream": _Stream,
        "stream": lambda *_: contextlib.nullcontext(),
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "default_generators": (torch.default_generator,),
        "_lazy_init": lambda: None,
        "_lazy_call": lambda callable, **__: None,
    }
    for name, value in replacements.items():
        setattr(cuda, name, value)
    cuda.random.get_rng_state = cuda.get_rng_state
    cuda.random.set_rng_state = cuda.set_rng_state


def _hide_packages_for_gpus() -> None:
    """Megatron-core would run their kernels on the CPU, or fail where they cannot be imported.

    They are installed on login nodes, in images for GPUs, and where only the wheel with Transformer
    Engine's Python is. What somebody imported already stays.
    """
    for name in ("transformer_engine", "apex", "amp_C"):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def _patch_megatron() -> None:
    with nothing_compiled(), nothing_unused():
        import megatron.core.models.backends  # noqa: F401 - it warns at import, too
        import megatron.core.tensor_parallel.random as random
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # It looks whether the CPU's generator is left alone: here that is the device's.
    logging.getLogger(random.__name__).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )
