"""Rules of `stage.adapters`, checked before any process starts."""

from __future__ import annotations

from collections.abc import Iterator

from nvlm.config.adapters import NF4
from nvlm.config.schema import RunConfig


def adapter_problems(config: RunConfig) -> Iterator[str]:
    """What does not go with matrices in 4 bits, each in one line."""
    quantized = [p for p, one in config.stage.adapters.items() if one.quantization == NF4]
    if not quantized:
        return
    where = f"stage.adapters {quantized[0]!r} quantization {NF4}"
    if config.train.fp8.recipe != "none":
        yield (
            f"{where} does not go with train.fp8.recipe {config.train.fp8.recipe}: 8-bit products "
            "read matrices of their own; set it to none"
        )
    if config.model.layer_implementation != "local":
        yield (
            f"{where} does not go with model.layer_implementation "
            f"{config.model.layer_implementation}: Transformer Engine's layers read their matrices "
            "themselves; use local"
        )
