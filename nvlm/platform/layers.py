"""`model.layer_implementation` on the machine that was found. This file imports no torch."""

from __future__ import annotations

from nvlm.errors import ConfigError
from nvlm.platform.machine import Machine

ENGINE = "transformer_engine"


def choose_layers(machine: Machine, wanted: str, precision: str) -> str:
    """`auto` -> `transformer_engine` where it is installed and can be used, else `local`.

    Raises:
        ConfigError: it is asked for and missing, or installed and cannot be imported.
    """
    if wanted == "local" or (wanted == "auto" and precision == "fp32"):
        return "local"
    if machine.has(ENGINE):
        return ENGINE
    if ENGINE in machine.broken:
        # Built for another torch or CUDA: said aloud, because `local` is slower.
        raise ConfigError(
            f"model.layer_implementation {wanted}: Transformer Engine is installed and cannot be "
            f"imported ({machine.broken[ENGINE]}): fix it, or use local"
        )
    if wanted == "auto":
        return "local"
    if not machine.has_gpu:
        raise ConfigError(
            "model.layer_implementation transformer_engine needs an NVIDIA GPU; "
            "none is available here: use auto or local"
        )
    raise ConfigError(
        "model.layer_implementation transformer_engine: Transformer Engine is not installed "
        "(the extra `cuda` of this package names it): use auto or local"
    )


def why_layers(machine: Machine, wanted: str, precision: str) -> str:
    """Why `choose_layers` chose what it did."""
    if wanted != "auto":
        return "model.layer_implementation"
    if choose_layers(machine, wanted, precision) == ENGINE:
        return f"version {machine.packages[ENGINE]}"
    if not machine.has_gpu:
        return "no GPU"
    if precision == "fp32":
        return "its attention over packed documents has no fp32"
    return "Transformer Engine is not installed"
