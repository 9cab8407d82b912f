"""The one place that knows which device the program runs on.

`current()` returns a module with the same functions for every device: `activate`, `device`,
`distributed_backend`, `bind_local_rank`, `seed`, `group_kwargs`, `optimizer_kwargs`,
`resolve_layer_implementation`, `peak_memory_bytes`, `device_name`, `synchronize`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType


def current() -> ModuleType:
    """The platform module for this machine, activated (safe to call any number of times)."""
    import torch  # here, because the command line imports this package before it needs torch

    if torch.cuda.is_available():
        from nvlm.platform import cuda as module
    else:
        from nvlm.platform import cpu as module
    hide_unfitting_torchvision()
    module.activate()
    return module


def hide_unfitting_torchvision() -> None:
    """Hide a torchvision that is made for another torch from transformers, which imports it.

    Nothing here needs it. Call this before transformers is imported, unless `current` was called.
    """
    try:
        import_module("torchvision")
    except ImportError:
        return
    except Exception:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
