"""`nvlm data stats`: what the blend will really give, from the planner, without reading an image.

Where the planned steps are many, stretches of steps spread over the run stand for all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from nvlm.config import RunConfig
from nvlm.data.index import SourceIndex, open_indexes
from nvlm.data.order import Planner
from nvlm.data.windows import Pack

# Samples planned at most, about; where the run has more, numbers are estimates from so many.
_MAX_SAMPLES = 160_000
_NUM_STRETCHES = 16
# Fill below which packing is worth a hint.
_MUCH_PADDING = 0.02


@dataclass
class SourceStats:
    """What one source gives to the planned steps."""

    samples: float = 0  # trained on
    images: float = 0
    tiles: float = 0
    image_tokens: float = 0  # placeholders
    text_tokens: float = 0  # all others: text, tags and control tokens
    shortened_tiles: float = 0  # samples that get fewer tiles, to fit
    cut_turns: float = 0  # samples that lose their last turns, to fit
    dropped: float = 0  # draws that fit no sequence
    passes: float = 0  # over the source


@dataclass
class BlendStats:
    """Of all planned steps; where `sampled_steps` is less than `steps`, estimated from so many."""

    steps: int  # fewer than asked for where every source reaches its `max_epochs` before
    sampled_steps: int
    packs: int
    padding: float  # share of all tokens
    # Data-parallel size -> cost of the costliest rank by the mean, on average over steps.
    imbalance: dict[int, float]
    sources: dict[str, SourceStats] = field(default_factory=dict)


def blend_stats(
    config: RunConfig, num_steps: int | None = None, indexes: list[SourceIndex] | None = None
) -> BlendStats:
    """Statistics of the first `num_steps` steps; None: `train.steps`."""
    num_steps = num_steps or config.train.steps
    planner = Planner(config, open_indexes(config) if indexes is None else indexes)
    counts = _Counts(config, planner)
    has_ended = counts.add_steps(num_steps, _MAX_SAMPLES // _NUM_STRETCHES)
    if not has_ended and counts.num_draws * num_steps <= _MAX_SAMPLES * counts.num_steps:
        has_ended = counts.add_steps(num_steps - counts.num_steps, _MAX_SAMPLES)
    if has_ended:
        return counts.result(counts.num_steps, planner.num_drawn)
    if counts.num_steps == num_steps:
        return counts.result(num_steps)

    stretch = counts.num_steps
    last_draw = planner.place(num_steps * counts.num_draws / stretch)
    for number in range(1, _NUM_STRETCHES):
        last_start = last_draw * (1 - stretch / num_steps)
        planner.place(number * last_start / (_NUM_STRETCHES - 1))
        counts.add_steps(stretch, _MAX_SAMPLES // _NUM_STRETCHES)
    draws_per_step = counts.num_draws / counts.num_steps
    # Fewer than wanted where every source is used up.
    last_draw = planner.place(num_steps * draws_per_step)
    return counts.result(round(last_draw / draws_per_step), planner.num_drawn)


class _Counts:
    """Adds up steps of a planner."""

    def __init__(self, config: RunConfig, planner: Planner):
        self._config, self._planner = config, planner
        self._sources = [SourceStats() for _ in planner.sources]
        self.num_steps = self.num_draws = 0
        self._num_tokens = 0
        num_micro_batches = config.train.global_batch_size // config.train.micro_batch_size
        self._ratios: dict[int, list[float]] = {
            2**power: [] for power in range(1, 11) if num_micro_batches % 2**power == 0
        }

    def add_steps(self, num_steps: int, max_draws: int) -> bool:
        """Whether the data ended before so many steps or draws."""
        last_draw = self.num_draws + max_draws
        for _ in range(num_steps):
            step = self._planner.next_step()
            if step is None:
                return True
            self._add(step)
            if self.num_draws >= last_draw:
                break
        return False

    def _add(self, step: list[Pack]) -> None:
        per_tile = self._config.model.vision.num_tokens_per_tile
        for pack in step:
            for draw in pack.draws:
                stats, index = self._sources[draw.source], self._planner.sources[draw.source].index
                stats.samples += 1
                stats.images += int(index.image_starts[draw.row + 1] - index.image_starts[draw.row])
                stats.tiles += draw.num_tiles
                stats.image_tokens += draw.num_tiles * per_tile
                stats.text_tokens += draw.length - draw.num_tiles * per_tile
                stats.shortened_tiles += draw.shortened_tiles
                stats.cut_turns += draw.cut_turns
                self._num_tokens += draw.length
            for draw in pack.dropped:
                self._sources[draw.source].dropped += 1
            self.num_draws += len(pack.draws) + len(pack.dropped)
        self.num_steps += 1
        costs = [self._planner.cost(pack) for pack in step]
        for data_size, ratios in self._ratios.items():
            size = len(costs) // data_size
            ranks = [sum(costs[start : start + size]) for start in range(0, len(costs), size)]
            ratios.append(max(ranks) * data_size / sum(ranks))

    def result(self, num_steps: int, num_drawn: list[int] | None = None) -> BlendStats:
        """`num_drawn`: draws per source in all `num_steps`; None: those counted."""
        batch, length = self._config.train.global_batch_size, self._config.stage.sequence_length
        scale = num_steps / self.num_steps
        sources = {}
        for number, (planned, stats) in enumerate(
            zip(self._planner.sources, self._sources, strict=True)
        ):
            counted = stats.samples + stats.dropped
            drawn = counted if num_drawn is None else num_drawn[number]
            # Exact draws where they are known: a stretch holds few of a small source.
            own_scale = drawn / counted if scale != 1 and counted else scale
            values = {name: value * own_scale for name, value in asdict(stats).items()}
            values["passes"] = drawn / len(planned.index)
            sources[planned.index.source] = SourceStats(**values)
        return BlendStats(
            steps=num_steps,
            sampled_steps=self.num_steps,
            packs=num_steps * batch,
            padding=1 - self._num_tokens / (self.num_steps * batch * length),
            imbalance={size: sum(r) / len(r) for size, r in self._ratios.items()},
            sources=sources,
        )


def print_stats(config: RunConfig, num_steps: int | None, as_json: bool) -> None:
    """`nvlm data stats`: tables, or one JSON object."""
    stats = blend_stats(config, num_steps)
    if as_json:
        print(json.dumps(asdict(stats)))
        return
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    console = Console(soft_wrap=True)
    estimated = stats.sampled_steps < stats.steps
    how = f"estimated from {stats.sampled_steps:,} of {stats.steps:,}" if estimated else "all"
    table = Table(
        title=f"{stats.steps:,} steps ({how} planned)",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
    )
    table.add_column("source")
    columns = [*SourceStats.__dataclass_fields__, "share"]
    for column in columns:
        table.add_column(column.replace("_", "\n"), justify="right")
    totals = dict.fromkeys(columns, 0.0)
    all_tokens = sum(s.image_tokens + s.text_tokens for s in stats.sources.values()) or 1
    for name, source in stats.sources.items():
        row = asdict(source) | {"share": (source.image_tokens + source.text_tokens) / all_tokens}
        table.add_row(name, *(_format(column, row[column]) for column in columns))
        totals = {column: totals[column] + row[column] for column in columns}
    cells = [_format(c, totals[c]) if c != "passes" else "" for c in columns]
    table.add_row("total", *cells, style="bold")
    # Wide enough for every number: a line too long for the window is better than a cropped one.
    options = console.options.update(max_width=10_000)
    console.width = max(console.width, Measurement.get(console, options, table).maximum)
    console.print(table)
    lines = [
        f"{stats.packs:,} sequences of {config.stage.sequence_length:,} tokens, "
        f"{stats.padding:.2%} padding; `share` is of all tokens"
    ]
    if stats.imbalance:
        ratios = ", ".join(f"{size}: {ratio:.3f}" for size, ratio in stats.imbalance.items())
        lines.append(f"cost of the costliest data rank by the mean, per number of ranks: {ratios}")
    wanted = num_steps or config.train.steps
    if stats.steps < wanted:
        lines.append(
            f"the data end at step {stats.steps:,} of {wanted:,}: every source reaches max_epochs"
        )
    if config.stage.packing and stats.padding > _MUCH_PADDING:
        lines.append(
            "a larger data.packing_window fills sequences better (few samples, or a tight tile "
            "budget, may leave padding whatever it is)"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False)


def _format(column: str, value: float) -> str:
    if column == "passes":
        return f"{value:.2f}"
    if column == "share":
        return f"{value:.1%}"
    return f"{round(value):,}"
