"""Modules in plain torch of which every tensor-parallel rank has all."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from nvlm import platform

Module = TypeVar("Module", bound=nn.Module)


def whole(make: Callable[[], Module], dtype: torch.dtype) -> Module:
    """The module that `make` returns, its weights in `dtype` and left unset.

    All ranks of a tensor-parallel group have the same tiles, and so the same gradients, up to the
    order in which a device adds: Megatron-core averages them, so that the copies stay equal to the
    last bit.
    """
    with torch.device("meta"):  # nothing is drawn
        module = make()
    # They would have no values: here, and where transformers opens an export.
    assert not [*module.buffers()], "such modules have parameters only"
    device = platform.current().device()
    for parameter in module.to(dtype).to_empty(device=device).parameters():
        parameter.average_gradients_across_tp_domain = True  # type: ignore[attr-defined]
    return module
