"""Megatron-core imported without what a run here never uses of it.

What is wrong: Megatron-core 0.16.1 imports torch's distributed tensors, fully sharded data
parallelism, checkpoints and TensorBoard when it is imported itself, mostly to compare types with;
and a client of object storage, where one is installed. Distributed tensors bring a system for
symbolic mathematics: together a second of the processor time in which a process starts.
What is done: without a GPU it is first imported inside `nothing_unused`. It asks for most of these
packages in a way that expects them to be missing, and does without; the one that it insists on is
imported when something of it is used.
When the pin moves: which packages are imported, and for what.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

_UNUSED = (
    "multistorageclient",
    "megatron.core.distributed.fsdp.src.megatron_fsdp",
    "torch.distributed._tensor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
)
_LATER = "torch.distributed.checkpoint"


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


@contextlib.contextmanager
def nothing_unused() -> Iterator[None]:
    """What is imported meanwhile finds these packages missing; those that are loaded stay."""
    stand_in = ModuleType(_LATER)
    stand_in.default_planner = _Later(f"{_LATER}.default_planner")  # type: ignore[attr-defined]
    replaced = {**dict.fromkeys(_UNUSED), _LATER: stand_in}
    replaced = {name: module for name, module in replaced.items() if name not in sys.modules}
    sys.modules.update(replaced)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in replaced:
            del sys.modules[name]
