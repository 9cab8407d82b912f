"""An encoder in plain torch as the vision model of NVLM-D."""

from types import SimpleNamespace

from .encoder_timm import Encoder  # type: ignore[import-not-found]  # an export has it beside


class TimmVisionModel(Encoder):
    def __init__(self, config):
        super().__init__(SimpleNamespace(**config.module))

    @property
    def dtype(self):
        return next(self.parameters()).dtype

    def patches(self, pixel_values):
        """[n, 3, image_size, image_size], normalised -> features of the patches [n, p, c]."""
        return self(pixel_values)
