"""What single parts of the model are taken to cost."""

from __future__ import annotations

from nvlm.config import load_config
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS, DEFAULT_CARD
from nvlm.plan.parts import cross_attention, decoder_layer
from nvlm.plan.seconds import device_of
from nvlm.plan.work import largest_work

TILES = "stage.max_tiles_per_sequence=12"
FUSED = ["model.fusion=cross_attention", "model.cross_attention.layer_interval=8"]


def test_cross_attention_is_a_small_share_of_the_layers_that_it_is_spread_over():
    """Of the 72B an eighth of the layers, each with queries and output of 8192 x 8192 beside the
    layer's own 877,658,112 weights: 15 % of them, and 2 % of all."""
    config = load_config("nvlm_d_72b/sft", [TILES, *FUSED])
    device = device_of(config, assumptions_for(CARDS[DEFAULT_CARD]))
    work = largest_work(config)
    found, layer = cross_attention(config, work, device), decoder_layer(config, work, device)
    assert 0.01 < found.forward.matmul / layer.forward.matmul < 0.04
    assert 0.01 < found.total / layer.total < 0.06
    decoder_only = load_config("nvlm_d_72b/sft", [TILES])
    assert cross_attention(decoder_only, work, device).total == 0
