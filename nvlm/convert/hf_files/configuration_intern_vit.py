"""Configuration of InternViT, with the key names of OpenGVLab's checkpoints."""

from transformers import PretrainedConfig


class InternVisionConfig(PretrainedConfig):
    """Sizes and variant of an InternViT encoder. The defaults are those of OpenGVLab's own class.

    `norm_type` (`rms_norm` or `layer_norm`), `qk_normalization` and `qkv_bias` tell the variants
    apart: InternViT-300M-448px has `layer_norm`, false and true.

    `num_attention_heads` is the number of real heads and fixes the head size
    (hidden_size / num_attention_heads). `num_stored_attention_heads` is the number of heads in the
    weights: the real ones, then heads of zeros that change nothing. NVLM-D stores 25 heads as 32,
    so that more tensor-parallel sizes divide them. The default stores the real heads only, as
    OpenGVLab does.

    `feature_layers`: layers, counted from the last, -1, whose hidden states NVLM-D's connector
    reads side by side; None: the last one's.
    """

    model_type = "intern_vit_6b"

    def __init__(
        self,
        hidden_size=3200,
        intermediate_size=12800,
        num_hidden_layers=48,
        num_attention_heads=25,
        num_stored_attention_heads=None,
        num_channels=3,
        image_size=224,
        patch_size=14,
        layer_norm_eps=1e-6,
        norm_type="rms_norm",
        qk_normalization=True,
        qkv_bias=False,
        hidden_act="gelu",
        attention_dropout=0.0,
        dropout=0.0,
        drop_path_rate=0.0,
        initializer_range=0.02,
        initializer_factor=0.1,
        feature_layers=None,
        **kwargs,
    ):
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_stored_attention_heads = num_stored_attention_heads or num_attention_heads
        self.num_channels = num_channels
        self.image_size = image_size
        self.patch_size = patch_size
        self.layer_norm_eps = layer_norm_eps
        self.norm_type = norm_type
        self.qk_normalization = qk_normalization
        self.qkv_bias = qkv_bias
        self.hidden_act = hidden_act
        self.attention_dropout = attention_dropout
        self.dropout = dropout
        self.drop_path_rate = drop_path_rate
        self.initializer_range = initializer_range
        self.initializer_factor = initializer_factor
        self.feature_layers = feature_layers
        super().__init__(**kwargs)

    @property
    def feature_size(self):
        """Channels of a patch, as the connector reads it."""
        return self.hidden_size * len(self.feature_layers or [-1])

    @property
    def num_patches(self):
        """Of a tile."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def pixel_statistics(self):
        """Mean and deviation of RGB values in 0..1: ImageNet's."""
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
