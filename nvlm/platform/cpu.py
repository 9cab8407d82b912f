"""Real Megatron-core on a CPU.

Megatron-core names the CUDA device in hundreds of places. `activate` makes them land on the CPU:
a `TorchFunctionMode` rewrites the device in factory calls, `.to` and `.cuda`; streams and
synchronisation do nothing; random-number state comes from the CPU generator; and the optimizer is
an AdamW that keeps `step` in its parameter groups, as NVIDIA's fused ones do (the distributed
optimizer's checkpoints rely on it). Nothing here runs where CUDA is available.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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
    with warnings.catch_warnings():
        # Megatron-core says at import that Transformer Engine and Apex are missing: known here.
        warnings.simplefilter("ignore")
        _patch_megatron()
    _mode = _CudaLandsOnCpu()
    _mode.__enter__()


def is_active() -> bool:
    return _mode is not None


def device() -> torch.device:
    return torch.device("cpu")


def device_name() -> str:
    num_threads = torch.get_num_threads()
    return f"CPU ({num_threads} thread{'s' * (num_threads != 1)})"


def distributed_backend() -> str:
    return "gloo"


def bind_local_rank(local_rank: int) -> None:
    """All ranks share the CPU."""


def seed(value: int) -> None:
    """Seed torch and Megatron-core's random-number tracker. Call after the process groups exist."""
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.manual_seed(value)
    model_parallel_cuda_manual_seed(value, force_reset_rng=True)


def group_kwargs() -> dict:
    """Arguments of `initialize_model_parallel`: no second set of groups for tensors on the CPU."""
    return {"create_gloo_process_groups": False}


def optimizer_kwargs() -> dict:
    """Arguments of `get_megatron_optimizer` that depend on the device."""
    return {"use_gloo_process_groups": False}


def resolve_layer_implementation(wanted: str, precision: str) -> str:
    """Transformer Engine needs CUDA, so `auto` is `local` here; asking for it is refused."""
    del precision  # makes a difference on GPUs
    if wanted == "transformer_engine":
        from nvlm.errors import ConfigError

        raise ConfigError(
            "model.layer_implementation transformer_engine needs an NVIDIA GPU; "
            "none is available here: use auto or local"
        )
    return "local"


def peak_memory_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronize() -> None:
    """The CPU runs in order."""


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
    """A stream in which everything has already happened."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *_: Any) -> None: ...


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


def _patch_megatron() -> None:
    with _nothing_compiled():
        import megatron.core.optimizer as optimizer
        import megatron.core.optimizer.distrib_optimizer as distrib_optimizer
        import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    optimizer.Adam = distrib_optimizer.Adam = GroupStepAdamW
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True


@contextlib.contextmanager
def _nothing_compiled() -> Iterator[None]:
    """Functions that are marked for `torch.compile` meanwhile stay as they are.

    Megatron-core marks its fusions when it is imported. They are for GPUs, and marking one loads
    the compiler: 3 of the 8 seconds of processor time in which a process starts.
    """
    compile = torch.compile
    torch.compile = lambda function, **_: function
    try:
        yield
    finally:
        torch.compile = compile


class GroupStepAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) with the step count in the parameter group.

    The same arithmetic as `torch.optim.AdamW`; that one keeps `step` per parameter, which the
    distributed optimizer's resharding cannot carry over.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **_: Any):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            group["step"] = step = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            bias1, bias2 = 1 - beta1**step, 1 - beta2**step
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                gradient = parameter.grad
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                state["exp_avg"].lerp_(gradient, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = (state["exp_avg_sq"] / bias2).sqrt_().add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / bias1)
