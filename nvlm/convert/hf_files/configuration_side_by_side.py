"""Configuration of several encoders that read the same tile."""

from transformers import PretrainedConfig


class SideBySideVisionConfig(PretrainedConfig):
    """encoders: the configuration of each, as it stands alone in `vision_config`.

    image_size, num_patches, hidden_size: of a tile, in pixels; its patches; channels of a patch.
    """

    model_type = "nvlm_side_by_side"

    def __init__(self, encoders=None, image_size=224, num_patches=196, hidden_size=768, **kwargs):
        self.encoders = encoders or []
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
        """Pixels stay in 0..1: each encoder normalises with its own mean and deviation."""
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
