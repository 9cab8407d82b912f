"""Balance: global steps, and a step's data-parallel ranks, cost about the same.

A pack's cost is what training on it computes (`nvlm.sizes.flops`).
"""

from __future__ import annotations

from collections.abc import Sequence

from nvlm.data.order.permutation import shuffled

# Steps whose packs are dealt out together.
_NUM_STEPS = 16
# Fewer steps where their packs would be more than this, to bound the planner's memory.
_MAX_PACKS = 16384


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
