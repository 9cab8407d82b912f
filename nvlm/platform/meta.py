"""Building a model without memory for it: its parameters have shapes and no values."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class OnMetaDevice(TorchFunctionMode):
    """Inside this context every new tensor is on torch's meta device, wherever it was asked for.

    Megatron-core names the device of each parameter itself, so torch's own `with torch.device`
    does not reach them.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _device_constructors():
            kwargs = {**kwargs, "device": "meta"}
        elif func is torch.Tensor.cuda:
            return args[0]
        elif func is torch.Tensor.to:
            # What remains after dropping devices: a data type, or nothing that changes a tensor.
            kept = [argument for argument in args[1:] if isinstance(argument, torch.dtype)]
            args, kwargs = (args[0], "meta", *kept), {}
        return func(*args, **kwargs)
