"""The one place that knows which device the program runs on.

    current()                      the platform of this machine (`base.Platform`), activated
    hide_unfitting_torchvision()   to be called before transformers is imported
    meta.OnMetaDevice              a model without memory
    HOST_BACKEND                   what processes talk through that compute on no device
    machine, features              what was found here, and which kernels and settings follow
    flight_recorder                the collectives that were issued, as torch notes them
    layers, attention, environment the larger of those decisions, a file each
    megatron_calls                 calls of Megatron-core that name a device, the same on all

Words for devices and for what connects them stand nowhere else.
"""

from __future__ import annotations

import sys
from importlib import import_module

from nvlm.platform import environment
from nvlm.platform.base import HOST_BACKEND, Platform

__all__ = ["HOST_BACKEND", "Platform", "current", "hide_unfitting_torchvision"]


def current() -> Platform:
    """The platform for this machine, activated (safe to call any number of times)."""
    import torch  # here, because the command line imports this package before it needs torch

    platform: Platform
    if torch.version.cuda:  # what it is built for: asking so does not wake a GPU
        environment.set_defaults()
    if torch.cuda.is_available():
        from nvlm.platform import cuda

        platform = cuda
    else:
        from nvlm.platform import cpu

        platform = cpu
    hide_unfitting_torchvision()
    platform.activate()
    return platform


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
