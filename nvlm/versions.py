"""`nvlm --version`: the versions that decide what a run computes. Imports none of them."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("nvlm", "torch", "megatron-core", "transformer-engine", "transformers")


def versions() -> str:
    """One line per package, and Python's."""
    lines = [f"{package} {_version(package)}" for package in _PACKAGES]
    return "\n".join([*lines, f"python {platform.python_version()}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
