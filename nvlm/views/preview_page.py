"""The preview as one HTML file that needs nothing else and no JavaScript: what it says.

How it looks is templates/preview.html's matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvlm.views.pages import write_page
from nvlm.views.preview import (
    Preview,
    ShownSample,
    describe,
    describe_cuts,
)
from nvlm.views.preview_figures import Figure, draw_figure
from nvlm.views.preview_spans import Span
from nvlm.views.stats import SourceStats

# Hues of sources, in degrees; neighbours differ in lightness too.
_FIRST_HUE = 212
_MAX_HUES = 12
_LIGHTNESS = ("0%", "-11%", "6%")
_SOURCE_HEADINGS = (
    "samples", "passes", "tiles", "tokens", "of all tokens", "trained tokens", "of the loss",
    "fewer tiles", "cut turns", "dropped", "tokens lost", "rejected",
)  # fmt: skip


@dataclass(frozen=True)
class _Card:
    """A sample and what stands on its card."""

    sample: ShownSample
    facts: list[str]
    cuts: list[str]
    figures: list[Figure]
    turns: list[list[Span]]

    @property
    def form(self) -> str:
        """CSS class: how pictures and text stand together."""
        return {0: "", 1: "one"}.get(len(self.figures), "several")


def write_preview(preview: Preview, path: Path) -> Path:
    """Write the page to `path`, beside and renamed."""
    config = preview.config
    return write_page(
        path,
        "nvlm.views",
        "preview.html",
        title=f"{config.run.name}: what training will see",
        subtitle=(
            f"{len(preview.samples)} samples in training order, seed {config.train.seed}, made by "
            "the run's own planner, reader and encoder."
        ),
        colours=_colours(list(preview.stats.sources)),
        facts=_facts(preview),
        sources_note=_sources_note(preview),
        source_headings=_SOURCE_HEADINGS,
        sources=_source_rows(preview),
        rejected=preview.rejected,
        packs_note=_packs_note(preview),
        sequences=preview.sequences,
        max_tokens=config.stage.sequence_length,
        max_tiles=preview.max_tiles,
        cards=[_card(sample) for sample in preview.samples],
    )


def _colours(sources: list[str]) -> dict[str, str]:
    """Source -> its colour, as CSS variables."""
    num_hues = min(len(sources), _MAX_HUES)
    return {
        name: f"--hue:{round(_FIRST_HUE + 360 * number / num_hues) % 360};"
        f"--lightness:{_LIGHTNESS[(number + number // num_hues) % len(_LIGHTNESS)]}"
        for number, name in enumerate(sources)
    }


def _facts(preview: Preview) -> list[tuple[str, str]]:
    """(value, what it is) of the run."""
    stats = preview.stats
    sources = stats.sources.values()
    draws = sum(s.samples + s.dropped for s in sources)
    tokens = sum(s.tokens for s in sources)
    trained = sum(s.trained_tokens for s in sources)
    lost = sum(s.lost_tokens for s in sources)
    shares = {
        "lose tiles": sum(s.shortened_tiles for s in sources),
        "lose turns": sum(s.cut_turns for s in sources),
        "are dropped": sum(s.dropped for s in sources),
    }
    too_long = [f"{_share(count, draws)} {what}" for what, count in shares.items() if count]
    return [
        (f"{stats.steps:,} steps", f"of {preview.config.train.global_batch_size} sequences"),
        (f"{_share(stats.padding, 1)} padding", f"in {stats.packs:,} sequences"),
        (
            f"{_share(sum(s.image_tokens for s in sources), tokens)} image tokens",
            f"of {round(tokens):,}",
        ),
        (f"{_share(trained, tokens)} trained tokens", f"{round(trained):,} count in the loss"),
        (
            f"{_share(lost, tokens + lost)} tokens lost",
            f"of samples, {', '.join(too_long)}" if too_long else "no sample is too long",
        ),
        (f"{sum(r.count for r in preview.rejected):,} rejected", "unusable, left out by indexing"),
    ]


def _share(part: float, whole: float) -> str:
    """`part` of `whole` in per cent; a small share is not rounded to none."""
    share = part / whole if whole else 0.0
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _packs_note(preview: Preview) -> str:
    stage = preview.config.stage
    steps = len({sequence.step for sequence in preview.sequences})
    budget = (
        f"stage.max_tiles_per_sequence {stage.max_tiles_per_sequence}"
        if stage.max_tiles_per_sequence is not None
        else f"{preview.max_tiles} tiles, as many as its tokens have room for"
    )
    return (
        f"The sequences of the first {'step' if steps == 1 else f'{steps} steps'}. The upper bar "
        f"is filled with tokens, up to stage.sequence_length {stage.sequence_length:,}; the lower "
        f"one with tiles, up to {budget}. A part is a sample, in its source's colour; a number "
        "leads to the sample below."
    )


def _sources_note(preview: Preview) -> str:
    stats = preview.stats
    how = (
        f"estimated from {stats.sampled_steps:,} planned steps spread over all {stats.steps:,}"
        if stats.sampled_steps < stats.steps
        else f"of all {stats.steps:,} steps"
    )
    return (
        f"What the blend gives, {how}. Fewer tiles, cut turns and dropped: shares of the samples "
        "drawn from the source; lost: of their tokens. Rejected samples are never drawn."
    )


def _source_rows(preview: Preview) -> list[tuple[str, list[tuple[str, str]]]]:
    """(source, its cells)."""
    rejected = dict.fromkeys(preview.stats.sources, 0)
    for entry in preview.rejected:
        rejected[entry.source] += entry.count
    return [
        (name, _source_cells(source, rejected[name]))
        for name, source in preview.stats.sources.items()
    ]


def _source_cells(source: SourceStats, num_rejected: int) -> list[tuple[str, str]]:
    """(text, CSS class) of each cell; losses stand out, and their absence does not."""
    draws = source.samples + source.dropped
    given = [
        f"{round(source.samples):,}",
        f"{source.passes:.2f}",
        f"{round(source.tiles):,}",
        f"{round(source.tokens):,}",
        _share(source.token_share, 1),
        f"{round(source.trained_tokens):,}",
        _share(source.loss_share, 1),
    ]
    lost = [
        _share(source.shortened_tiles, draws),
        _share(source.cut_turns, draws),
        _share(source.dropped, draws),
        _share(source.lost_share, 1),
        f"{num_rejected:,}",
    ]
    return [(text, "") for text in given] + [
        (text, "none" if text in ("0.0 %", "0") else "warn") for text in lost
    ]


def _card(sample: ShownSample) -> _Card:
    several = len(sample.images) > 1
    figures = [
        draw_figure(image, number if several else None)
        for number, image in enumerate(sample.images, start=1)
    ]
    return _Card(sample, describe(sample), describe_cuts(sample), figures, _turns(sample.spans))


def _turns(spans: list[Span]) -> list[list[Span]]:
    """The tokens, a block per turn."""
    turns: list[list[Span]] = []
    for span in spans:
        if span.starts_turn or not turns:
            turns.append([])
        turns[-1].append(span)
    return turns
