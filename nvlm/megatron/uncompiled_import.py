"""Megatron-core imported without torch's compiler.

What is wrong: Megatron-core 0.16.1 marks its fusions with `torch.compile` when it is imported. They
are for GPUs, and marking one loads the compiler: 3 of the 8 seconds of processor time in which a
process starts.
What is done: without a GPU it is first imported inside `nothing_compiled`.
When the pin moves: whether the fusions are marked as they are first called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def nothing_compiled() -> Iterator[None]:
    """Functions that are marked for `torch.compile` meanwhile stay as they are."""
    compile = torch.compile
    torch.compile = lambda function, **_: function
    try:
        yield
    finally:
        torch.compile = compile
