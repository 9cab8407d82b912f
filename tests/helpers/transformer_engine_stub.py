"""Transformer Engine without a GPU: its own Python, with torch in the place of its C++ extension.

`install` makes a wheel's Python (`scripts/install dev` fetches it) importable. Everything that is
written in Python there runs as it is: modules, autograd functions, the choice of attention, the
optimizer. What it asks of `transformer_engine_torch`, its extension, is answered in torch for the
kernels that this project's layers and optimizer reach, and refused by name for all others.

What this cannot show: any kernel, what cuDNN and cuBLAS support, time, memory, NCCL.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

EXTENSION = "transformer_engine_torch"
# Apex's, which Megatron-core's own linear layers add gradients of weights up with.
WEIGHT_GRADIENTS = "fused_weight_gradient_mlp_cuda"
# (format, mask, number of documents or batch) of each attention that ran, in order.
attention_calls: list[tuple[str, str, int]] = []
# Number of documents of each fused rotation that ran.
rotation_calls: list[int] = []


def install(folder: Path) -> None:
    """Let `transformer_engine` be the one in `folder`, on a machine that looks like an H100.

    The folder stands on the import path (PYTHONPATH). Call this before anything imports
    Megatron-core, which looks for it as it is imported.
    """
    assert not any(name.startswith(("megatron", "transformer_engine")) for name in sys.modules)
    assert not torch.cuda.is_available(), "a GPU has Transformer Engine's own kernels"
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its `common` loads no library
    _look_like_a_gpu()
    _let_the_shim_run_it()
    sys.modules[EXTENSION] = _Extension(EXTENSION)
    sys.modules[WEIGHT_GRADIENTS] = apex = types.ModuleType(WEIGHT_GRADIENTS)
    apex.wgrad_gemm_accum_fp32 = wgrad_gemm_accum_fp32  # type: ignore[attr-defined]
    for name in ("einops", "onnx", "onnxscript", "triton"):
        if importlib.util.find_spec(name) is None:
            sys.meta_path.append(_Unused(name))
    _import_transformer_engine(folder)


def _import_transformer_engine(folder: Path) -> None:
    """As `import` does, but that its package does not look for the extension's file."""
    spec = importlib.util.find_spec("transformer_engine")
    assert spec and spec.loader and spec.origin and Path(spec.origin).is_relative_to(folder)
    sys.modules[spec.name] = package = importlib.util.module_from_spec(spec)
    common = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None
    spec.loader.exec_module(package)


def _look_like_a_gpu() -> None:
    properties = types.SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=80 << 30
    )
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: properties
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.device = lambda *_: contextlib.nullcontext()
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None


def _let_the_shim_run_it() -> None:
    """The CPU platform, with the layers that are asked for."""
    from nvlm import platform
    from nvlm.platform import cpu

    cpu.resolve_layer_implementation = lambda wanted, precision: wanted

    def current():
        if cpu._mode is None:
            cpu.activate()
            torch.cuda.is_available = lambda: True
            _TensorsAreOnTheGpu().__enter__()
        return cpu

    platform.current = current


class _TensorsAreOnTheGpu(TorchFunctionMode):
    """Its modules refuse other tensors."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func == torch.Tensor.is_cuda.__get__:
            return True
        return func(*args, **(kwargs or {}))


class _Unused:
    """Finds a missing package that only kernels and exports need, which are not used here."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.split(".")[0] != self.name:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = _UnusedModule(spec.name)
        module.__version__ = "3.5.0"
        return module

    def exec_module(self, module: types.ModuleType) -> None: ...


class _UnusedModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _Anything:
    """Takes every decoration, annotation and subscript; decorated functions stay as they are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()

    def __call__(self, *args: Any, **_: Any) -> Any:
        return args[0] if args and callable(args[0]) else _Anything()

    def __getitem__(self, _: Any) -> Any:
        return self


class _Extension(types.ModuleType):
    """`transformer_engine_torch`: kernels in torch, and names for all that is merely mentioned."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        for kernel in KERNELS:
            setattr(self, kernel.__name__, kernel)
        for enumeration, values in PLACES.items():
            for value in values:
                getattr(getattr(self, enumeration), value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Names(name, (), {})
        setattr(self, name, value)
        return value


class _Value(int):
    """One value of an enumeration: an integer that knows its name."""

    def __new__(cls, number: int, name: str):
        value = super().__new__(cls, number)
        value.name = name  # type: ignore[attr-defined]
        return value


class _Names(type):
    """A class or enumeration of the extension: its values are what is asked of it."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        numbers = cls.__dict__.get("_numbers") or itertools.count()
        cls._numbers = numbers
        value = _Value(next(numbers), name)
        setattr(cls, name, value)
        return value

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{EXTENSION}.{cls.__name__}: the stub has no such kernel")


def _extension() -> Any:
    return sys.modules[EXTENSION]


def _torch_dtype(dtype: _Value) -> torch.dtype:
    constants = importlib.import_module("transformer_engine.pytorch.constants")
    return {value: key for key, value in constants.TE_DType.items()}[dtype]


# What follows has the signatures of the extension's functions, as Python calls them.


def get_cudnn_version() -> int:
    return 91600


def generic_gemm(
    A, transa, B, transb, out, quantizer, out_dtype, bias, bias_dtype, gelu, gelu_in, grad,
    workspace, workspace_size, accumulate, split_accumulator, *, comm_overlap, comm_type,
    extra_output, bulk_overlap, alpha, beta,
):  # fmt: skip
    """op(B) @ op(A) over the last axes, as cuBLAS: added up in fp32, rounded once.

    The bias is added to the product; where `grad` is set it is B's sum instead, its gradient.
    """
    assert quantizer is None and not gelu and comm_overlap is None, "not of these layers"
    assert workspace.dtype == torch.uint8 and workspace.shape == (workspace_size,)
    assert alpha == 1 and beta == (1 if accumulate else 0)
    a, b = A.reshape(-1, A.shape[-1]), B.reshape(-1, B.shape[-1])
    if out is not None and out.dtype != a.dtype:
        a, b = a.to(out.dtype), b.to(out.dtype)
    product = (b.t() if transb else b) @ (a.t() if transa else a)
    if not transb:
        product = product.view(*B.shape[:-1], -1)
    bias_gradient = None
    if bias is not None and grad:
        bias_gradient = B.reshape(-1, B.shape[-1]).sum(0).to(_torch_dtype(bias_dtype))
    elif bias is not None:
        product = product + bias
    if out is not None:
        out.add_(product) if accumulate else out.copy_(product)
        product = out
    elif out_dtype is not None:
        product = product.to(_torch_dtype(out_dtype))
    return product, bias_gradient, None, extra_output


def get_fused_attn_backend(is_training, q_type, kv_type, layout, bias, mask, *_):
    """cuDNN's flash attention takes 16-bit values without a bias."""
    del is_training, layout
    names = _extension()
    backends = names.NVTE_Fused_Attn_Backend
    plain = bias == names.NVTE_Bias_Type.NVTE_NO_BIAS and q_type == kv_type
    sixteen_bits = q_type in (names.DType.kBFloat16, names.DType.kFloat16)
    known = mask.name in ("NVTE_NO_MASK", "NVTE_PADDING_CAUSAL_MASK")
    if plain and sixteen_bits and known:
        return backends.NVTE_F16_arbitrary_seqlen
    return backends.NVTE_No_Backend


def fused_attn_fwd(
    max_seqlen_q, max_seqlen_kv, is_training, scale, dropout, fast_zero_fill, layout, bias_type,
    mask, softmax_type, window, cu_seqlens_q, cu_seqlens_kv, q, k, v, *_,
):  # fmt: skip
    assert dropout == 0 and max_seqlen_q == max_seqlen_kv
    is_packed = layout.name == "NVTE_THD_THD_THD"
    attention_calls.append(
        (
            "thd" if is_packed else "sbhd",
            mask.name,
            len(cu_seqlens_q) - 1 if is_packed else q.shape[1],
        )
    )
    output = _attend(q, k, v, scale, layout, mask, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q)
    # The real one keeps the softmax's sums and the random state; the gradient here needs neither.
    return [output, torch.empty(0), torch.empty(2, dtype=torch.int64)]


def fused_attn_bwd(
    max_seqlen_q, max_seqlen_kv, scale, dropout, fast_zero_fill, layout, bias_type, mask,
    softmax_type, window, deterministic, cu_seqlens_q, cu_seqlens_kv, q, k, v, o, d_o, *_,
):  # fmt: skip
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
        output = _attend(*inputs, scale, layout, mask, cu_seqlens_q, cu_seqlens_kv, max_seqlen_q)
    return [*torch.autograd.grad(output, inputs, d_o), None, None]


def _attend(q, k, v, scale, layout, mask, starts_q, starts_kv, max_seqlen) -> Tensor:
    """q_sbhd, k_sbgd, v_sbgd, full; or q_thd, k_tgd, v_tgd, causal in each document."""

    def attend(query, key, value, causal):  # [b, h, s, d]
        grouped = query.shape[1] != key.shape[1]
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped
        )

    if layout.name != "NVTE_THD_THD_THD":
        assert mask.name == "NVTE_NO_MASK"
        output = attend(*(tensor.permute(1, 2, 0, 3) for tensor in (q, k, v)), causal=False)
        return output.permute(2, 0, 1, 3)
    assert mask.name == "NVTE_PADDING_CAUSAL_MASK" and torch.equal(starts_q, starts_kv)
    documents = list(pairwise(starts_q.tolist()))
    assert documents[-1][1] == len(q)
    assert max(end - start for start, end in documents) <= max_seqlen
    outputs = [
        attend(*(tensor[start:end].transpose(0, 1)[None] for tensor in (q, k, v)), causal=True)
        for start, end in documents
    ]
    return torch.cat([output[0].transpose(0, 1) for output in outputs])


def fused_rope_forward(t, freqs, start_positions, layout, interleaved, cu_seqlens, cp_size, _):
    """t_thd rotated by freqs [longest, 1, 1, d], angles in fp32; each document from its start."""
    assert start_positions is None and not interleaved and cp_size == 1
    assert layout.name == "NVTE_THD" and freqs.dtype == torch.float32
    rotation_calls.append(len(cu_seqlens) - 1)
    angles = torch.cat([freqs[: end - start, 0] for start, end in pairwise(cu_seqlens.tolist())])
    first, second = t.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (t.float() * angles.cos() + turned * angles.sin()).to(t.dtype)


def fused_rope_backward(gradient, freqs, *how):
    """A rotation's transpose turns back. 2.9 does not hand over where documents start."""
    return fused_rope_forward(gradient, -freqs, None, *how[-5:])


def wgrad_gemm_accum_fp32(inputs, gradient, main_grad):
    main_grad.add_(gradient.float().t() @ inputs.float())


def multi_tensor_l2norm(chunk_size, overflow, tensors, per_tensor):
    assert not per_tensor
    norms = [tensor.float().norm() for tensor in tensors[0]]
    return torch.stack(norms).norm().view(1), torch.empty(0)


def multi_tensor_scale(chunk_size, overflow, tensors, scale):
    for source, target in zip(*tensors, strict=True):
        target.copy_(source * scale)


def multi_tensor_adam(
    chunk_size, overflow, tensors, lr, beta1, beta2, epsilon, step, mode, bias_correction, decay
):
    """AdamW: mode 1 is decoupled weight decay."""
    assert mode == 1 and bias_correction
    bias1, bias2 = 1 - beta1**step, 1 - beta2**step
    for gradient, parameter, mean, square in zip(*tensors, strict=True):
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        parameter.mul_(1 - lr * decay)
        parameter.addcdiv_(mean, (square / bias2).sqrt_().add_(epsilon), value=-lr / bias1)


# Places in lists: of the tensors of an 8-bit product.
PLACES = {
    "FP8FwdTensors": ("GEMM1_INPUT", "GEMM1_WEIGHT", "GEMM1_OUTPUT"),
    "FP8BwdTensors": ("GRAD_OUTPUT1", "GRAD_INPUT1"),
}
KERNELS: Sequence[Callable[..., Any]] = (
    get_cudnn_version,
    generic_gemm,
    get_fused_attn_backend,
    fused_attn_fwd,
    fused_attn_bwd,
    fused_rope_forward,
    fused_rope_backward,
    multi_tensor_l2norm,
    multi_tensor_scale,
    multi_tensor_adam,
)
