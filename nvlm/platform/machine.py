"""What a process finds on its machine, as plain values: decisions about kernels read nothing else.

This file imports no torch, so that a laptop can ask what another machine would do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Machine:
    """A process's device, and the packages and settings that decide how it is used."""

    device: str  # its name, for people
    # Compute capability of an NVIDIA GPU, such as (9, 0) for H100; None: no GPU.
    capability: tuple[int, int] | None = None
    # Version of each package with kernels that is installed and can be imported:
    # transformer_engine, flash_attn, flash_attn_3, apex, triton; and of Apex's extension
    # fused_weight_gradient_mlp_cuda, which it may be installed without.
    packages: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    # Those that are installed and cannot be imported, and why not.
    broken: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    cudnn: tuple[int, ...] = ()  # version of the one that torch has loaded
    environment: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    memory_bytes: int = 0  # of the GPU, in all
    c_compiler: str = ""  # the program that Triton starts kernels with the help of; "": none

    @property
    def has_gpu(self) -> bool:
        return self.capability is not None

    def has(self, package: str, *version: int) -> bool:
        """Whether `package` can be imported, in at least this version."""
        return package in self.packages and self.version(package) >= version

    def version(self, package: str) -> tuple[int, ...]:
        """Of a package that `has` said is there."""
        return numbers(self.packages[package])


def with_image(device: str, capability: tuple[int, int]) -> Machine:
    """A machine with such a GPU where the image of docker/ runs, for plans."""
    packages = {
        "transformer_engine": "2.10.0",
        "flash_attn": "2.7.4",
        "apex": "0.1",
        "fused_weight_gradient_mlp_cuda": "0.1",
        "triton": "3.5.0",
    }
    return Machine(device, capability, packages, cudnn=(9, 17, 0), c_compiler="gcc")


def numbers(version: str) -> tuple[int, ...]:
    """`2.10.0+769ed778` -> (2, 10, 0)."""
    parts = []
    for part in version.split("+")[0].split("."):
        if not part.isdigit():
            break
        parts.append(int(part))
    return tuple(parts)
