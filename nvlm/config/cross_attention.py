"""How NVLM-X's and NVLM-H's decoder reads what is beside its row: `model.cross_attention`."""

from __future__ import annotations

from typing import Literal

from nvlm.config.section import Section
from nvlm.config.values import Count


class CrossAttentionConfig(Section):
    """Gated cross-attention between self-attention and MLP of some of the decoder's layers: norm of
    the hidden states, attention to the image tokens of the document, times tanh of a gate that
    begins at 0. Heads are those of the decoder."""

    layer_interval: Count
    """Every how many layers, the last of so many (paper table 11: 10 in all, every 6th of the 34B,
    every 8th of the 72B)."""
    num_query_groups: Count | None = None
    """Key and value heads. null: as many as the decoder's self-attention has."""
    levels: Literal["together", "in_turn"] = "together"
    """What each of these layers reads of `vision.feature_layers`. `together`: all, side by side
    through one connector. `in_turn`: one, the first layers the first and so on, each encoder layer
    through a connector of its own (EVLM). docs/switches.md."""

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Which of a decoder's layers, from 0."""
        return tuple(range(self.layer_interval - 1, num_layers, self.layer_interval))

    def level(self, layer: int, num_layers: int, num_levels: int) -> int:
        """Which of so many levels a layer reads, one of `layers`; equal shares of them, in order.

        Of `levels: together` there is one.
        """
        layers = self.layers(num_layers)
        return layers.index(layer) * num_levels // len(layers)
