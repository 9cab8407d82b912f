"""On the path of vLLM's processes: names of torchvision's operators, which it registers more for.

Its release from the package index is built for CUDA and cannot load them here. None is called.
"""

import torch

library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
