"""Balance: the packs of a global step cost about the same, so that no rank waits for another.

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
from nvlm.config.derived import (
    LANGUAGE,
    NUM_SHUFFLED_PATCHES,
    VISION,
    count_parameters,
    parameter_shapes,
)
from nvlm.data.permutation import shuffled

# Steps whose packs are dealt out together.
_NUM_STEPS = 16
# Fewer steps where their packs would be more than this, to bound the planner's memory.
_MAX_PACKS = 16384
# How much more than the mean of its step the costliest pack may cost, on average over steps. Below
# this, a mixed step is worth more than a balanced one.
_MAX_RATIO = 1.02


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

    Packs are sorted by cost and cut into strata, every step takes its packs from one stratum, and
    there are as few strata as balance needs: where packs cost nearly the same, a step has all
    kinds. Steps, and packs inside each, are in random order, so that any split of a step over
    ranks and micro-batches is balanced. If the packs do not fill the steps, one step is short.
    """
    if not costs:
        return []
    num_steps = -(-len(costs) // global_batch_size)
    num_strata = 1
    while True:
        steps = _deal(costs, global_batch_size, num_strata, *key_parts)
        if num_strata >= num_steps or mean_ratio(costs, steps) <= _MAX_RATIO:
            break
        num_strata *= 2
    order = shuffled(len(steps), *key_parts, "steps").tolist()
    return [steps[number] for number in order]


def mean_ratio(costs: Sequence[int], steps: list[list[int]]) -> float:
    """Highest cost of a step's packs by their mean cost, on average over the steps."""
    ratios = []
    for step in steps:
        of_step = [costs[pack] for pack in step]
        ratios.append(max(of_step) * len(of_step) / sum(of_step))
    return sum(ratios) / len(ratios)


def _deal(
    costs: Sequence[int], global_batch_size: int, num_strata: int, *key_parts: int | str
) -> list[list[int]]:
    order = sorted(range(len(costs)), key=lambda pack: (-costs[pack], pack))
    num_steps = -(-len(costs) // global_batch_size)
    size = -(-num_steps // num_strata) * global_batch_size
    steps = []
    for start in range(0, len(order), size):
        stratum = order[start : start + size]
        mixed = [stratum[i] for i in shuffled(len(stratum), *key_parts, "stratum", start).tolist()]
        steps += [
            mixed[first : first + global_batch_size]
            for first in range(0, len(mixed), global_batch_size)
        ]
    return steps
