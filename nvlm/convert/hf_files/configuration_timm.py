"""Configuration of encoders in plain torch: timm's ViTs."""

from transformers import PretrainedConfig


class TimmVisionConfig(PretrainedConfig):
    """encoder: what the training's configuration says of it. module: what its file is made of.

    image_size, patch_size, hidden_size: of a tile, in pixels, and of a patch's features.
    """

    model_type = "nvlm_timm"

    def __init__(
        self, encoder=None, module=None, image_size=224, num_patches=196, hidden_size=768, **kwargs
    ):
        self.encoder = encoder
        self.module = module or {}
        self.image_size = image_size
        self.num_patches = num_patches
        self.hidden_size = hidden_size
        super().__init__(**kwargs)

    @property
    def feature_size(self):
        """Channels of a patch, as the connector reads it."""
        return self.hidden_size

    @property
    def pixel_statistics(self):
        """Mean and deviation of RGB values in 0..1."""
        return self.module["pixel_mean"], self.module["pixel_std"]
