"""The section of a decoder with a mixture of experts."""

from __future__ import annotations

from nvlm.config.section import Section
from nvlm.config.values import Count, PositiveOrZero


class ExpertsConfig(Section):
    """Experts in place of the MLP in some layers of the decoder, as in MM1.

    A router sends each token to `top_k` of a layer's experts and adds up what they make of it, by
    the softmax of their `top_k` logits. No token is dropped. `parallel.expert` shares experts among
    processes; docs/experts.md."""

    num_experts: Count
    """Experts of each layer that has them: MLPs like the one in whose place they are."""
    top_k: Count = 2
    """Experts that each token goes through."""
    every_nth_layer: Count = 1
    """Which layers have experts: the last one of every so many. 1: all of them."""
    ffn_hidden_size: Count | None = None
    """Width inside an expert. null: `model.language.ffn_hidden_size`."""
    load_balance_loss: PositiveOrZero = 0.01
    """Weight, beside the loss per token, of each layer's load-balance loss, which is 1 where tokens
    are spread evenly and more where they are not."""
    z_loss: PositiveOrZero = 0.001
    """Weight of each layer's router z-loss, the mean square of the logarithm of the sum of the
    exponentials of the router's logits, which keeps them small."""
