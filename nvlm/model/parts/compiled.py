"""Functions of a few element-wise operations, which become one kernel where the machine compiles.

A norm written as torch operations reads and writes memory ten times as often as it has to; one
kernel does so once. Rounding stays as it is written: without the setting below torch's compiler
would leave out casts to bf16 between two operations, and with them our cast order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from nvlm import platform
from nvlm.platform.features import why_not_compiled

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled at its first call where this process's machine can, else as it is."""
    chosen: Callable[P, R] | None = None

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal chosen
        if chosen is None:
            chosen = function
            if not why_not_compiled(platform.current().machine()):
                chosen = torch.compile(function, options={"emulate_precision_casts": True})
        return chosen(*args, **kwargs)

    return call
