"""Packing and balance on a usual mixture: padding, cost over ranks, time on one core, in one run.

    python benchmarks/packing.py [--samples N] [--config CONFIG]

Samples: 15 % text only, the others of 1 to 7 tiles (55 % of 7); text log-normal with a median of
120 tokens; 1,388 tokens on average. Ways:

    no packing    a sequence per sample
    next fit      in the order drawn; a sample that does not fit closes the sequence
    first fit     in the order drawn, into the first of a window's sequences with room
    nvlm          best-fit decreasing over windows, the emptiest sequences carried over

Imbalance: cost of a step's costliest rank by the ranks' mean, on average over steps; by the FLOPs
of the configuration's model and, as the hardest case, by tiles alone. `in order`: as packed;
`nvlm`: as dealt out. Ranks with one sequence per step differ as sequences do, however dealt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nvlm.config import load_config
from nvlm.data.order.balance import deal_out, imbalance, num_steps_together
from nvlm.data.order.packing import choose_carried, pack_samples
from nvlm.data.order.permutation import shuffled
from nvlm.sizes.flops import step_flops

WINDOW = 512
BUDGETS = {4096: 15, 16384: 58}  # tokens -> tiles
Packs = list[list[int]]


def draw_samples(num_samples: int, seed: int) -> tuple[list[int], list[int]]:
    """(tokens, tiles) of each."""
    random = np.random.default_rng(seed)
    tiles = random.choice([1, 3, 4, 5, 7], num_samples, p=[0.10, 0.15, 0.05, 0.15, 0.55])
    tiles[random.random(num_samples) < 0.15] = 0
    text = np.maximum(1, random.lognormal(np.log(120), 1, num_samples)).astype(np.int64)
    lengths = np.minimum(261 * tiles + text, min(BUDGETS))
    return lengths.tolist(), tiles.tolist()


def no_packing(lengths: list[int], tiles: list[int], max_tokens: int, max_tiles: int) -> Packs:
    return [[sample] for sample in range(len(lengths))]


def next_fit(lengths: list[int], tiles: list[int], max_tokens: int, max_tiles: int) -> Packs:
    packs: Packs = [[]]
    free_tokens, free_tiles = max_tokens, max_tiles
    for sample in range(len(lengths)):
        if lengths[sample] > free_tokens or tiles[sample] > free_tiles:
            packs.append([])
            free_tokens, free_tiles = max_tokens, max_tiles
        packs[-1].append(sample)
        free_tokens -= lengths[sample]
        free_tiles -= tiles[sample]
    return packs


def first_fit(lengths: list[int], tiles: list[int], max_tokens: int, max_tiles: int) -> Packs:
    packs: Packs = []
    for start in range(0, len(lengths), WINDOW):
        opened: list[list] = []  # [free tokens, free tiles, samples]
        for sample in range(start, min(len(lengths), start + WINDOW)):
            for pack in opened:
                if pack[0] >= lengths[sample] and pack[1] >= tiles[sample]:
                    break
            else:
                pack = [max_tokens, max_tiles, []]
                opened.append(pack)
            pack[0] -= lengths[sample]
            pack[1] -= tiles[sample]
            pack[2].append(sample)
        packs += [pack[2] for pack in opened]
    return packs


def nvlm(lengths: list[int], tiles: list[int], max_tokens: int, max_tiles: int) -> Packs:
    """As nvlm.data.order.windows packs the samples that it draws."""
    out: Packs = []
    waiting: list[tuple[int, int]] = []  # (sample, windows waited)
    for number, start in enumerate(range(0, len(lengths), WINDOW)):
        stop = min(len(lengths), start + WINDOW)
        waiting += [(sample, 0) for sample in range(start, stop)]
        own_lengths = [lengths[sample] for sample, _ in waiting]
        packs = pack_samples(own_lengths, [tiles[s] for s, _ in waiting], max_tokens, max_tiles)
        carried: set[int] = set()
        if stop < len(lengths):
            ages = [age for _, age in waiting]
            carried = choose_carried(packs, own_lengths, ages, max_tokens, WINDOW)
        full = [pack for n, pack in enumerate(packs) if n not in carried]
        for place in shuffled(len(full), "packs", number).tolist():
            out.append([waiting[i][0] for i in full[place]])
        waiting = [(waiting[i][0], waiting[i][1] + 1) for n in carried for i in packs[n]]
    return out


WAYS: dict[str, Callable[[list[int], list[int], int, int], Packs]] = {
    "no packing": no_packing,
    "next fit": next_fit,
    "first fit": first_fit,
    "nvlm": nvlm,
}


def dealt(costs: list[int], num_ranks: int, per_rank: int) -> tuple[float, float, float]:
    """Imbalance in order and as dealt out, and milliseconds of dealing out."""
    batch = num_ranks * per_rank
    num_steps = len(costs) // batch
    in_order = [costs[start : start + batch] for start in range(0, num_steps * batch, batch)]
    together = batch * num_steps_together(batch)
    steps: list[list[int]] = []
    started = time.perf_counter()
    for number, start in enumerate(range(0, num_steps * batch, together)):
        group = costs[start : min(start + together, num_steps * batch)]
        by_step = deal_out(group, batch, "group", number)
        steps += [[group[pack] for pack in step] for step in by_step]
    milliseconds = 1e3 * (time.perf_counter() - started)
    before, after = (
        sum(imbalance(step, num_ranks) for step in dealing) / num_steps
        for dealing in (in_order, steps)
    )
    return before, after, milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--config", type=Path, default=Path("configs/run/nvlm_d_34b/sft.yaml"))
    arguments = parser.parse_args()
    config = load_config(arguments.config, [])
    flops = step_flops(config)
    lengths, tiles = draw_samples(arguments.samples, seed=0)
    per_10k = 1e4 / len(lengths)
    console = Console()

    for max_tokens, max_tiles in BUDGETS.items():
        table = Table(title=f"{max_tokens:,} tokens, {max_tiles} tiles", title_justify="left")
        for heading in ("way", "sequences", "padding", "sequences by nvlm's", "ms per 10,000"):
            table.add_column(heading, justify="left" if heading == "way" else "right")
        found: dict[str, tuple[Packs, float]] = {}
        for name, way in WAYS.items():
            started = time.perf_counter()
            packs = way(lengths, tiles, max_tokens, max_tiles)
            found[name] = packs, 1e3 * (time.perf_counter() - started)
        packs = found["nvlm"][0]
        assert sorted(sample for pack in packs for sample in pack) == list(range(len(lengths)))
        for name, (made, milliseconds) in found.items():
            padding = 1 - sum(lengths) / (len(made) * max_tokens)
            ratio = len(made) / len(packs)
            cells = [f"{len(made):,}", f"{padding:.2%}", f"{ratio:.2f}"]
            table.add_row(name, *cells, f"{milliseconds * per_10k:.0f}")
        console.print(table)

        by_tiles = [sum(tiles[i] for i in pack) + 1 for pack in packs]
        by_cost = [
            flops.of_sequence([lengths[i] for i in pack], sum(tiles[i] for i in pack), max_tokens)
            for pack in packs
        ]
        headings = ("ranks", "sequences each", "cost", "in order", "nvlm", "ms per 10,000")
        table = Table(*headings)
        for num_ranks in (8, 64):
            for per_rank in (1, 2, 4):
                for name, costs in ((arguments.config.parent.name, by_cost), ("tiles", by_tiles)):
                    in_order, out, milliseconds = dealt(costs, num_ranks, per_rank)
                    cells = [f"{in_order:.3f}", f"{out:.3f}", f"{milliseconds * per_10k:.0f}"]
                    table.add_row(str(num_ranks), str(per_rank), name, *cells)
        console.print(table)


if __name__ == "__main__":
    main()
