"""What autograd keeps of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Kept:
    """The tensors that were kept for the backward pass, parameters not counted."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []  # held, so that no memory is used twice

    @property
    def num_bytes(self) -> int:
        """Of the memory behind them, each storage once."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in self.tensors}
        return sum(storage.nbytes() for storage in storages.values())


@contextmanager
def kept_by_autograd(model: nn.Module) -> Iterator[Kept]:
    """Collects what forward passes of `model` inside this context keep."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = Kept()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept.tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
