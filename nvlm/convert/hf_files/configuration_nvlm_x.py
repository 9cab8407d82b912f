"""Configurations of NVLM-X and NVLM-H: NVLM-D's, and where cross-attention stands."""

from .configuration_nvlm_d import NVLM_D_Config


class NVLM_X_Config(NVLM_D_Config):
    """The decoder reads all tiles by cross-attention.

    cross_attention_interval: every how many layers of the language model, the last of so many.
    cross_attention_num_key_value_heads: of those layers; None is as many as self-attention has.
    """

    model_type = "NVLM_X"
    fusion = "cross_attention"

    def __init__(
        self, cross_attention_interval=8, cross_attention_num_key_value_heads=None, **kwargs
    ):
        super().__init__(**kwargs)
        self.cross_attention_interval = cross_attention_interval
        self.cross_attention_num_key_value_heads = (
            cross_attention_num_key_value_heads or self.llm_config.num_key_value_heads
        )


class NVLM_H_Config(NVLM_X_Config):
    """The decoder has thumbnails in its sequence, and reads the other tiles by cross-attention."""

    model_type = "NVLM_H"
    fusion = "hybrid"

    def __init__(self, **kwargs):
        # Its own: transformers 5 makes one of fields for classes without.
        super().__init__(**kwargs)
