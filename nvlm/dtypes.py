"""Number types of weights: what configurations, safetensors files and torch call them; their bytes.

torch is loaded only where its own type is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Dtype:
    """A number type; `safetensors_name` is as the headers of such files spell it."""

    torch_name: str
    safetensors_name: str
    num_bytes: int

    @property
    def torch(self) -> torch.dtype:
        import torch

        return getattr(torch, self.torch_name)


# By their names in configurations (`train.precision`) and options.
DTYPES = {
    "fp32": Dtype("float32", "F32", 4),
    "bf16": Dtype("bfloat16", "BF16", 2),
    "fp16": Dtype("float16", "F16", 2),
}
