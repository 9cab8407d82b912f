"""Balance: global steps, and a step's data-parallel ranks, cost about the same.

A pack's cost is what training on it computes, in floating-point operations:

    tokens:     2 x (weights of the decoder's matrices and the output layer)     per token
    attention:  2 x layers x hidden size         per pair of tokens of a document, half are masked
    tiles:      2 x (weights of the ViT's matrices) x (patches + 1)
                + 4 x layers x width x (patches + 1)^2 + the projector            per tile

times 1 for the forward pass, 1 for the gradient of the input and 1 for that of the weights, as far
as the stage needs them: a frozen encoder runs forwards only. Costs are whole numbers, the same on
every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.config import RunConfig
from nvlm.data.order.permutation import shuffled
from nvlm.sizes.parameters import (
    LANGUAGE,
    NUM_SHUFFLED_PATCHES,
    VISION,
    count_parameters,
    parameter_shapes,
)

# Steps whose packs are dealt out together.
_NUM_STEPS = 16
# Fewer steps where their packs would be more than this, to bound the planner's memory.
_MAX_PACKS = 16384


@dataclass(frozen=True)
class CostWeights:
    """Floating-point operations of a training step."""

    per_token: int
    per_token_pair: int
    per_tile: int

    @classmethod
    def from_config(cls, config: RunConfig) -> CostWeights:
        vision, language = config.model.vision, config.model.language
        shapes = dict(parameter_shapes(config.model))

        def trainable_share(component: str) -> float:
            count = count_parameters(shapes, config.stage.freeze, f"{component}.*")
            return count.trainable / count.total

        # The decoder always passes gradients on to the projector or to its own lower layers.
        language_passes = 2 + trainable_share(LANGUAGE)
        vision_share = trainable_share(VISION)
        vision_passes = 2 + vision_share if vision_share else 1

        hidden, width = language.hidden_size, language.num_query_groups * language.head_dim
        layer = 2 * hidden**2 + 2 * hidden * width + 3 * hidden * language.ffn_hidden_size
        per_token = 2 * (language.num_layers * layer + hidden * language.vocab_size)
        per_token_pair = 2 * language.num_layers * hidden

        stored = vision.num_stored_attention_heads * vision.head_dim
        positions = vision.num_patches + 1
        layer = 4 * vision.hidden_size * stored + 2 * vision.hidden_size * vision.ffn_hidden_size
        encoder = vision.num_layers * (2 * layer * positions + 4 * stored * positions**2)
        projector = config.model.projector.ffn_hidden_size * (
            NUM_SHUFFLED_PATCHES * vision.hidden_size + hidden
        )
        return cls(
            per_token=round(per_token * language_passes),
            # Attention has no weights: forwards, and twice that backwards.
            per_token_pair=3 * per_token_pair,
            per_tile=round(
                encoder * vision_passes + 3 * 2 * projector * vision.num_tokens_per_tile
            ),
        )

    def cost(self, lengths: Sequence[int], num_tiles: int, sequence_length: int) -> int:
        """Of a sequence with documents of these lengths; the rest is a document of padding."""
        padding = sequence_length - sum(lengths)
        pairs = sum(length * length for length in lengths) + padding * padding
        return (
            self.per_token * sequence_length
            + self.per_token_pair * pairs
            + self.per_tile * num_tiles
        )


def num_steps_together(global_batch_size: int) -> int:
    """Steps whose packs `deal_out` takes at once."""
    return max(1, min(_NUM_STEPS, _MAX_PACKS // global_batch_size))


def deal_out(
    costs: Sequence[int], global_batch_size: int, *key_parts: int | str
) -> list[list[int]]:
    """Packs of each step, as numbers into `costs`.

    Packs are sorted by cost, and every step takes one of the costliest, one of the next and so on,
    at random: steps cost about the same and hold packs of all kinds. (Steps of one cost each would
    balance ranks even with one pack each; but packs of one cost are often of one kind, and
    gradients would swing from step to step.) Within a step, packs are ordered by `arrange`. If
    the packs do not fill the steps, the last step is short.
    """
    random_keys = shuffled(len(costs), *key_parts).tolist()
    num_steps, num_left = divmod(len(costs), global_batch_size)
    shuffled_packs = sorted(range(len(costs)), key=random_keys.__getitem__)
    balanced, left = shuffled_packs[num_left:], shuffled_packs[:num_left]
    balanced.sort(key=lambda pack: -costs[pack])
    strata = [
        balanced[start : start + num_steps] for start in range(0, len(balanced), num_steps or 1)
    ]
    for stratum in strata:
        stratum.sort(key=random_keys.__getitem__)
    steps = [list(step) for step in zip(*strata, strict=True)]
    return [arrange(costs, step, random_keys) for step in (*steps, left) if step]


def arrange(costs: Sequence[int], packs: list[int], random_keys: Sequence[int]) -> list[int]:
    """The packs of a step in an order in which every data-parallel rank costs about the same.

    Ranks get equal shares of the step, one after another. So the step is cut into halves of about
    equal cost (thirds or more where its size is odd), those again, and so on: it holds at every
    data-parallel size.

    Args:
        packs: numbers into `costs`, the costliest first.
        random_keys: a random number for every pack; decides which half comes first.
    """
    num_parts = _smallest_divisor(len(packs))
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    sums = [0] * num_parts
    for start in range(0, len(packs), num_parts):
        # The costliest of these to the part that has least.
        by_sum = sorted(range(num_parts), key=sums.__getitem__)
        for pack, part in zip(packs[start : start + num_parts], by_sum, strict=True):
            parts[part].append(pack)
            sums[part] += costs[pack]
    parts.sort(key=lambda part: random_keys[part[0]])
    if num_parts == len(packs):
        return [pack for part in parts for pack in part]
    return [pack for part in parts for pack in arrange(costs, part, random_keys)]


def imbalance(costs: Sequence[int], num_ranks: int) -> float:
    """Cost of the costliest data-parallel rank by the ranks' mean.

    Args:
        costs: of a step's packs, in its order; a multiple of `num_ranks` many.
    """
    size = len(costs) // num_ranks
    sums = [sum(costs[start : start + size]) for start in range(0, len(costs), size)]
    return max(sums) * num_ranks / sum(sums)


def _smallest_divisor(number: int) -> int:
    """Of those above 1; 1 of 1."""
    return next((n for n in range(2, number + 1) if number % n == 0), 1)
