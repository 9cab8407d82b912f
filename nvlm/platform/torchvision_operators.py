"""Lets torchvision import beside a CPU-only torch.

torchvision's published wheel is built for CUDA; next to a CPU torch its compiled operators are not
loaded, and `import torchvision` (which transformers and timm do) fails on the missing schemas of
`nms` and `qnms`. Declaring the two schemas is enough: nothing here calls the operators.
"""

from __future__ import annotations

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None


def declare_missing_operators() -> None:
    """Declare the operators torchvision needs at import. Does nothing where CUDA is present."""
    global _library
    if _library is not None or torch.cuda.is_available() or torch.version.cuda is not None:
        return
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS.values():
        _library.define(schema)
