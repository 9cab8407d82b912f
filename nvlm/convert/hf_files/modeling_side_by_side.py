"""Several encoders that read the same tile, side by side, as the vision model of NVLM-D."""

import torch
from torch import nn

from .configuration_intern_vit import InternVisionConfig
from .configuration_timm import TimmVisionConfig
from .encoder_side_by_side import (  # type: ignore[import-not-found]  # an export has it beside
    read_side_by_side,
)
from .modeling_intern_vit import InternVisionModel
from .modeling_timm import TimmVisionModel

ENCODERS = {
    "InternVisionModel": (InternVisionConfig, InternVisionModel),
    "TimmVisionModel": (TimmVisionConfig, TimmVisionModel),
}


class SideBySideVisionModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.encoders, self.inputs = nn.ModuleList(), []
        for values in config.encoders:
            config_class, model_class = ENCODERS[values["architectures"][0]]
            one = config_class(**values)
            self.encoders.append(model_class(one))
            self.inputs.append((one.image_size, *one.pixel_statistics))

    @property
    def dtype(self):
        """Of pixels, which are resized and normalised before each encoder takes its own type."""
        return torch.float32

    def patches(self, pixel_values):
        """[n, 3, image_size, image_size] in 0..1 -> features of the patches [n, p, sum of c]."""
        return read_side_by_side(
            pixel_values, [encoder.patches for encoder in self.encoders], self.inputs
        )
