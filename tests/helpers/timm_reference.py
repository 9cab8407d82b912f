"""timm, to compare with: that of scripts/fetch_timm, which is not installed."""

from __future__ import annotations

import re
import site
import sys
from functools import cache

import torch

from helpers.paths import REPOSITORY


@cache
def timm():
    """The module. The torchvision that it imports cannot be found by others afterwards."""
    requirements = (REPOSITORY / "scripts" / "timm.txt").read_text()
    (version,) = re.findall(r"^timm==(\S+)$", requirements, re.M)
    folder = REPOSITORY / ".venv" / "timm" / version
    assert folder.is_dir(), "scripts/install dev puts it there"
    # Its compiled part is for another torch. What timm needs is in Python, and can be imported
    # where these two are known.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    site.addsitedir(str(folder))
    try:
        import timm  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    timm.operators_of_torchvision = operators  # as long as it lives
    return timm
