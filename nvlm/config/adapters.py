"""Adapters as a configuration says them: a pattern of matrices, and what is put beside them."""

from __future__ import annotations

from typing import Literal

from nvlm.config.section import Section
from nvlm.config.values import Count, Positive, Switch

# The matrices of a layer of the encoder and the decoder.
LINEARS = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
# NF4 keeps one scale for so many numbers of a row.
NF4, NF4_BLOCK = "nf4", 64


class AdapterConfig(Section):
    """A low-rank adapter beside each matrix that the pattern matches, such as
    `language_model.*.linear_*.weight` (LoRA, arXiv 2106.09685). Patterns that match no matrix of a
    linear layer, or one that another matches, are errors. docs/training.md."""

    rank: Count
    """Width between an adapter's two factors. Queries, keys, values, and gate and up of an MLP have
    factors of their own, although Megatron-core stores them in one matrix: as peft has them."""
    alpha: Positive | None = None
    """What adapters add is multiplied by `alpha / rank`. null: twice the rank."""
    dora: Switch = False
    """Trains the length of each of the matrix's rows apart from its direction (DoRA, arXiv
    2402.09353)."""
    quantization: Literal["none", "nf4"] = "none"
    """How the matrix itself is held while it trains: in `train.precision`, or in blocks of 64
    numbers of 4 bits (NF4, QLoRA, arXiv 2305.14314), which takes bitsandbytes."""

    @property
    def scale(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def with_alpha(self) -> AdapterConfig:
        """The same, which says its alpha."""
        return self.model_copy(update={"alpha": self.scale * self.rank} if not self.alpha else {})
