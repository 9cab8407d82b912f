"""Counts what would make the host wait for a GPU, on a machine that need not have one.

Each of these copies from the device to the host, in plain sight or to learn the size of a result.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.paths import REPOSITORY

# Operations that read values, or whose result's size depends on values.
_ASKING = {
    "aten._local_scalar_dense",  # item, int(), float(), bool(), `if tensor`
    "aten.equal",
    "aten.is_nonzero",
    "aten.masked_scatter_backward",
    "aten.masked_select",
    "aten.nonzero",
    "aten.repeat_interleave",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
}
# Methods that no operation shows where a tensor is in host memory already.
_COPYING = {Tensor.tolist: "tolist", Tensor.numpy: "numpy", Tensor.cpu: "cpu", Tensor.cuda: "cuda"}
# Values that the host writes to a device, which waits, too.
_WRITING = {torch.tensor: "torch.tensor", torch.as_tensor: "torch.as_tensor"}


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        if name in _ASKING or (name in _INDEXING and _by_mask(name, args)):
            _note(self.found, name)
        return func(*args, **(kwargs or {}))


_INDEXING = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}


def _by_mask(name: str, args: tuple) -> bool:
    """Whether an index is a mask, and has to be searched. Writing one value to a mask is a
    masked_fill (canDispatchToMaskedFill in ATen/native/TensorAdvancedIndexing.cpp)."""
    indices = [index for index in args[1] if index is not None]
    if not any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        return False
    return not (name != "aten.index" and len(indices) == 1 and args[2].numel() == 1)


class _Functions(TorchFunctionMode):
    def __init__(self, found: Counter[str]):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _COPYING or (func in _WRITING and kwargs.get("device") is not None):
            _note(self.found, (_COPYING | _WRITING)[func])
        if (
            func in _WRITING
        ):  # numbers in tensors are read one by one, without a dispatched operation
            for _ in range(_num_tensors(args[0])):
                _note(self.found, "item")
        return func(*args, **kwargs)


def _num_tensors(data: object) -> int:
    if isinstance(data, list | tuple):
        return sum(map(_num_tensors, data))
    return int(isinstance(data, Tensor))


def _note(found: Counter[str], name: str) -> None:
    """Count `name` with the line that asked, the innermost of Megatron-core or of ours."""
    frames = traceback.extract_stack()
    owners = (f"{REPOSITORY}/nvlm/", f"{REPOSITORY}/tests/megatron", "/megatron/core/")
    skipped = f"{REPOSITORY}/nvlm/platform/"
    for frame in reversed(frames):
        if any(owner in frame.filename for owner in owners) and skipped not in frame.filename:
            folders = frame.filename.split("/")
            found[f"{name} in {'/'.join(folders[-2:])} {frame.name}"] += 1
            return
    found[name] += 1


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Within, forward and backward: what asked the device -> how often."""
    found: Counter[str] = Counter()
    wait = torch.cuda.synchronize
    torch.cuda.synchronize = lambda *_: _note(found, "synchronize")
    try:
        with _Functions(found), _Operations(found):
            yield found
    finally:
        torch.cuda.synchronize = wait
