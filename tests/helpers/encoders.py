"""Overrides that give the small model other encoders, of as many patches as its InternViT has."""

from __future__ import annotations

_SIZES = "num_layers: 2, hidden_size: 64, ffn_hidden_size: 96, num_attention_heads: 4"
SIGLIP = (
    f"model.vision={{kind: timm, name: vit_so400m_patch14_siglip_384, image_size: 112, {_SIZES}}}"
)
CLIP = (
    "model.vision={kind: timm, name: vit_large_patch14_clip_quickgelu_336.openai, "
    f"feature_layer: -2, image_size: 112, {_SIZES.replace('layers: 2', 'layers: 3')}}}"
)
DINOV2 = (
    f"model.vision={{kind: timm, name: vit_large_patch14_reg4_dinov2, image_size: 112, {_SIZES}}}"
)
AIMV2 = f"model.vision={{kind: timm, name: aimv2_large_patch14_224, image_size: 112, {_SIZES}}}"
# Of its three layers the last is not built; with the other two's hidden states side by side.
CLIP_LAYERS = CLIP.replace("feature_layer: -2", "feature_layers: [-3, -2]")
# An InternViT of 112 pixels and 14, and a SigLIP of 128 and 16, which reads the tiles larger.
SIDE_BY_SIDE = (
    "model.vision={kind: side_by_side, encoders: [{num_layers: 2, hidden_size: 80, "
    "ffn_hidden_size: 96, num_attention_heads: 5, num_stored_attention_heads: 8, image_size: 112}, "
    f"{{kind: timm, name: vit_base_patch16_siglip_256.v2_webli, image_size: 128, {_SIZES}}}]}}"
)
ENCODERS = {"SigLIP": [SIGLIP], "CLIP": [CLIP], "DINOv2": [DINOV2], "AIMv2": [AIMV2]}
ENCODERS["CLIP, two layers"] = [CLIP_LAYERS]
