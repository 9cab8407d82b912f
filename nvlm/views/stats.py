"""`nvlm data stats`: what the blend will really give, from the planner, without reading an image.

Where the planned steps are many, stretches of steps spread over the run stand for all of them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields

from rich.console import Console

from nvlm.config import RunConfig
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.loading.collate import loss_divisor
from nvlm.data.order.draws import Pack, PlannedDraws
from nvlm.data.order.planner import Planner
from nvlm.printing import new_console, say
from nvlm.sizes.visual import VisualLayout
from nvlm.tables import print_table

# Samples planned at most, about; where the run has more, numbers are estimates from so many.
_MAX_SAMPLES = 160_000
_NUM_STRETCHES = 16
# Fill below which packing is worth a hint.
_MUCH_PADDING = 0.02


@dataclass
class SourceStats:
    """What one source gives to the planned steps."""

    samples: float = 0  # trained on
    passes: float = 0  # over the source
    images: float = 0
    tiles: float = 0
    image_tokens: float = 0  # placeholders
    text_tokens: float = 0  # all others: text, tags and control tokens
    token_share: float = 0  # of the tokens of all sources
    trained_tokens: float = 0  # those that the loss counts
    loss_share: float = 0  # of the loss: trained tokens by their weights
    shortened_tiles: float = 0  # samples that get fewer tiles, to fit
    shortened_tiles_tokens: float = 0  # that they lose so
    cut_turns: float = 0  # samples that lose their last turns, to fit
    cut_turns_tokens: float = 0
    dropped: float = 0  # draws that fit no sequence
    dropped_tokens: float = 0

    @property
    def tokens(self) -> float:
        return self.image_tokens + self.text_tokens

    @property
    def lost_tokens(self) -> float:
        """That would be trained or read if sequences had room for all of them."""
        return self.shortened_tiles_tokens + self.cut_turns_tokens + self.dropped_tokens

    @property
    def lost_share(self) -> float:
        """Lost tokens by all that the drawn samples have."""
        return self.lost_tokens / (self.tokens + self.lost_tokens or 1)


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
        self._visual = VisualLayout.from_config(config)
        self._sources = [SourceStats() for _ in planner.sources]
        self._loss_weights = [0.0 for _ in planner.sources]
        self.num_steps = self.num_draws = 0
        self._num_tokens = 0
        num_micro_batches = config.train.global_batch_size // config.train.micro_batch_size
        self._ratios: dict[int, list[float]] = {
            2**power: [] for power in range(1, 11) if num_micro_batches % 2**power == 0
        }

    def add_steps(self, num_steps: int, max_draws: int) -> bool:
        """Whether the data ended before so many steps or draws."""
        last_draw = self.num_draws + max_draws
        drawn: list[PlannedDraws] = []
        has_ended = False
        for _ in range(num_steps):
            step = self._planner.next_step()
            if step is None:
                has_ended = True
                break
            self._add_step(step)
            drawn += [draws for pack in step for draws in (pack.draws, pack.dropped)]
            if self.num_draws >= last_draw:
                break
        if drawn:
            self._add_draws(PlannedDraws.concat(drawn))
        return has_ended

    def _add_step(self, step: list[Pack]) -> None:
        self.num_steps += 1
        self.num_draws += sum(len(pack.draws) + len(pack.dropped) for pack in step)
        self._num_tokens += sum(int(pack.draws.length.sum()) for pack in step)
        costs = [self._planner.cost(pack) for pack in step]
        for data_size, ratios in self._ratios.items():
            size = len(costs) // data_size
            ranks = [sum(costs[start : start + size]) for start in range(0, len(costs), size)]
            ratios.append(max(ranks) * data_size / sum(ranks))

    def _add_draws(self, draws: PlannedDraws) -> None:
        for number in range(len(self._sources)):
            self._add_source(number, draws.take(draws.source == number))

    def _add_source(self, number: int, draws: PlannedDraws) -> None:
        stats, source = self._sources[number], self._planner.sources[number]
        tokens, fits = source.account(draws), draws.fits
        num_tiles = int(draws.num_tiles[fits].sum())
        num_images = int(tokens.num_images[fits].sum())
        image_tokens = self._visual.num_tokens(num_tiles, num_images)
        stats.samples += int(fits.sum())
        stats.images += num_images
        stats.tiles += num_tiles
        stats.image_tokens += image_tokens
        stats.text_tokens += int(draws.length[fits].sum()) - image_tokens
        stats.trained_tokens += int(tokens.num_trained[fits].sum())
        stats.shortened_tiles += int(draws.shortened_tiles.sum())
        stats.shortened_tiles_tokens += int(tokens.lost_tiles[fits].sum())
        stats.cut_turns += int(draws.cut_turns.sum())
        stats.cut_turns_tokens += int(tokens.lost_turns[fits].sum())
        stats.dropped += int((~fits).sum())
        whole = draws.length + tokens.lost_tiles + tokens.lost_turns
        stats.dropped_tokens += int(whole[~fits].sum())
        trained = tokens.num_trained[fits]
        weights = trained / loss_divisor(trained, self._config.train.loss_weighting)
        weights = weights * source.index.loss_weight[draws.row[fits]]
        self._loss_weights[number] += source.settings.loss_weight * float(weights.sum())

    def result(self, num_steps: int, num_drawn: list[int] | None = None) -> BlendStats:
        """`num_drawn`: draws per source in all `num_steps`; None: those counted."""
        batch, length = self._config.train.global_batch_size, self._config.stage.sequence_length
        scale = num_steps / self.num_steps
        sources, loss_weights = {}, {}
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
            loss_weights[planned.index.source] = self._loss_weights[number] * own_scale
        all_tokens = sum(source.tokens for source in sources.values()) or 1
        all_weights = sum(loss_weights.values()) or 1
        for name, source in sources.items():
            source.token_share = source.tokens / all_tokens
            source.loss_share = loss_weights[name] / all_weights
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
        say(json.dumps(asdict(stats)))
        return
    console = new_console()
    estimated = stats.sampled_steps < stats.steps
    how = f"estimated from {stats.sampled_steps:,} of {stats.steps:,}" if estimated else "all"
    title = f"{stats.steps:,} steps ({how} planned)"
    _print_table(console, title, stats.sources, _GIVEN)
    lines = [
        f"{stats.packs:,} sequences of {config.stage.sequence_length:,} tokens, "
        f"{stats.padding:.2%} padding",
        f"of the loss: trained tokens, each with its weight (train.loss_weighting "
        f"{config.train.loss_weighting}, and the loss_weight of sources and samples)",
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
    too_long = {name: source for name, source in stats.sources.items() if source.lost_tokens}
    if not too_long:
        lines.append("no sample is too long: none loses tiles or turns, none is dropped")
    for line in lines:
        console.print(line, markup=False, highlight=False)
    if too_long:
        console.print()
        _print_table(console, "Too long: samples, and the tokens they lose", too_long, _LOST)


# Columns of the two tables: heading, attribute.
_GIVEN = [
    ("samples", "samples"),
    ("passes", "passes"),
    ("images", "images"),
    ("tiles", "tiles"),
    ("image\ntokens", "image_tokens"),
    ("text\ntokens", "text_tokens"),
    ("of all\ntokens", "token_share"),
    ("trained\ntokens", "trained_tokens"),
    ("of the\nloss", "loss_share"),
]
_LOST = [
    ("fewer\ntiles", "shortened_tiles"),
    ("tokens\nlost", "shortened_tiles_tokens"),
    ("cut\nturns", "cut_turns"),
    ("tokens\nlost", "cut_turns_tokens"),
    ("dropped", "dropped"),
    ("tokens\nlost", "dropped_tokens"),
    ("of its\ntokens", "lost_share"),
]


def _print_table(
    console: Console, title: str, sources: dict[str, SourceStats], columns: list[tuple[str, str]]
) -> None:
    rows = [
        [name, *(_format(source, attribute) for _, attribute in columns)]
        for name, source in sources.items()
    ]
    total = _total(sources)
    rows.append(["total", *(_format(total, a) if a != "passes" else "" for _, a in columns)])
    styles = [*[None] * len(sources), "bold"]
    print_table(
        console, title, ["source", *(heading for heading, _ in columns)], rows, styles=styles
    )


def _total(sources: dict[str, SourceStats]) -> SourceStats:
    names = [f.name for f in fields(SourceStats)]
    values = {name: sum(getattr(s, name) for s in sources.values()) for name in names}
    return SourceStats(**values)


def _format(source: SourceStats, attribute: str) -> str:
    value = getattr(source, attribute)
    if attribute == "passes":
        return f"{value:.2f}"
    if attribute.endswith("share"):
        return f"{value:.1%}"
    return f"{round(value):,}"
