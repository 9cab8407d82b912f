"""The preview as one HTML file that needs nothing else and no JavaScript."""

from __future__ import annotations

import html
import string
from importlib import resources
from pathlib import Path

from nvlm.data.text.chat import TURN_START
from nvlm.views.preview import (
    PlannedSequence,
    Preview,
    ShownSample,
    describe,
    describe_cuts,
)
from nvlm.views.preview_pictures import image_figures
from nvlm.views.preview_spans import Span, visible
from nvlm.views.stats import SourceStats

# Hues of sources, in degrees; neighbours differ in lightness too.
_FIRST_HUE = 212
_MAX_HUES = 12
_LIGHTNESS = ("0%", "-11%", "6%")


def write_page(preview: Preview, path: Path) -> Path:
    """Write the page to `path`, beside and renamed."""
    template = string.Template(
        resources.files("nvlm.views").joinpath("preview.html").read_text(encoding="utf-8")
    )
    config = preview.config
    colours = _colours(list(preview.stats.sources))
    page = template.substitute(
        title=_text(f"{config.run.name}: what training will see"),
        subtitle=_text(
            f"{len(preview.samples)} samples in training order, seed {config.train.seed}, made by "
            "the run's own planner, reader and encoder."
        ),
        facts=_facts(preview),
        samples="".join(_card(sample, colours[sample.source]) for sample in preview.samples),
        packs_note=_packs_note(preview),
        legend="".join(
            f'<span class="source" style="{colour}">{_text(name)}</span>'
            for name, colour in colours.items()
        ),
        packs="".join(_sequence(preview, sequence, colours) for sequence in preview.sequences),
        sources_note=_sources_note(preview),
        sources=_sources_table(preview, colours),
        rejected=_rejected_table(preview, colours),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    return path


def _colours(sources: list[str]) -> dict[str, str]:
    """Source -> its colour, as CSS variables."""
    num_hues = min(len(sources), _MAX_HUES)
    return {
        name: f"--hue:{round(_FIRST_HUE + 360 * number / num_hues) % 360};"
        f"--lightness:{_LIGHTNESS[(number + number // num_hues) % len(_LIGHTNESS)]}"
        for number, name in enumerate(sources)
    }


def _text(text: str) -> str:
    return html.escape(visible(text))


def _facts(preview: Preview) -> str:
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
    facts = [
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
    return "".join(
        f'<div class="fact"><b>{_text(value)}</b><span>{_text(what)}</span></div>'
        for value, what in facts
    )


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
    return _text(
        f"The sequences of the first {'step' if steps == 1 else f'{steps} steps'}. The upper bar "
        f"is filled with tokens, up to stage.sequence_length {stage.sequence_length:,}; the lower "
        f"one with tiles, up to {budget}. A part is a sample, in its source's colour; a number "
        "leads to the sample below."
    )


def _sequence(preview: Preview, sequence: PlannedSequence, colours: dict[str, str]) -> str:
    max_tokens, max_tiles = preview.config.stage.sequence_length, preview.max_tiles
    num_tokens = sum(document.length for document in sequence.documents)
    num_tiles = sum(document.num_tiles for document in sequence.documents)
    tokens, tiles = [], []
    for document in sequence.documents:
        title = html.escape(
            visible(
                f"{document.source}/{document.key}: {document.length:,} tokens, "
                f"{document.num_tiles:,} tiles"
            )
        )
        colour, name = colours[document.source], _text(document.source)
        width = f"{100 * document.length / max_tokens:.4f}%"
        attributes = f'style="{colour};width:{width}" data-tokens="{document.length}"'
        if document.shown is None:
            tokens.append(f'<i {attributes} title="{title}">{name}</i>')
        else:
            tokens.append(
                f'<a {attributes} title="{title}" href="#sample-{document.shown}">'
                f"<b>{document.shown}</b> {name}</a>"
            )
        if document.num_tiles:
            width = f"{100 * document.num_tiles / max_tiles:.4f}%"
            tiles.append(
                f'<i style="{colour};width:{width}" data-tiles="{document.num_tiles}" '
                f'title="{title}"></i>'
            )
    return (
        f'<div class="sequence"><span class="name">step {sequence.step}, sequence '
        f'{sequence.number}</span><div class="bars"><div class="bar">{"".join(tokens)}</div>'
        f'<div class="bar low">{"".join(tiles)}</div></div><span class="fill">'
        f"<b>{num_tokens:,}</b> / {max_tokens:,} tokens<i> · </i><br>"
        f"<b>{num_tiles:,}</b> / {max_tiles:,} tiles</span></div>"
    )


def _sources_note(preview: Preview) -> str:
    stats = preview.stats
    how = (
        f"estimated from {stats.sampled_steps:,} planned steps spread over all {stats.steps:,}"
        if stats.sampled_steps < stats.steps
        else f"of all {stats.steps:,} steps"
    )
    return _text(
        f"What the blend gives, {how}. Fewer tiles, cut turns and dropped: shares of the samples "
        "drawn from the source; lost: of their tokens. Rejected samples are never drawn."
    )


def _sources_table(preview: Preview, colours: dict[str, str]) -> str:
    rejected = dict.fromkeys(colours, 0)
    for entry in preview.rejected:
        rejected[entry.source] += entry.count
    rows = []
    for name, source in preview.stats.sources.items():
        cells = "".join(
            f'<td class="number{kind}">{_text(value)}</td>'
            for value, kind in _source_cells(source, rejected[name])
        )
        rows.append(
            f'<tr><td><span class="source" style="{colours[name]}">{_text(name)}</span></td>'
            f"{cells}</tr>"
        )
    names = (
        "samples", "passes", "tiles", "tokens", "of all tokens", "trained tokens", "of the loss",
        "fewer tiles", "cut turns", "dropped", "tokens lost", "rejected",
    )  # fmt: skip
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    return (
        f'<table class="sources"><thead><tr><th>source</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _source_cells(source: SourceStats, num_rejected: int) -> list[tuple[str, str]]:
    """(text, class after a blank) of each cell; losses stand out, and their absence does not."""
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
        (text, " none" if text in ("0.0 %", "0") else " warn") for text in lost
    ]


def _rejected_table(preview: Preview, colours: dict[str, str]) -> str:
    if not preview.rejected:
        return '<p class="soft">Indexing left no sample out.</p>'
    rows = []
    for entry in preview.rejected:
        example = ""
        if entry.example is not None:
            name = f"{entry.example.shard} {entry.example.key or '(shard)'}"
            example = f"<b>{_text(name)}</b> {_text(entry.example.detail)}"
        rows.append(
            f'<tr><td><span class="source" style="{colours[entry.source]}">{_text(entry.source)}'
            f"</span></td><td>{_text(entry.reason)}</td>"
            f'<td class="number">{entry.count:,}</td><td class="soft">{example}</td></tr>'
        )
    return (
        '<table><thead><tr><th>source</th><th>reason</th><th class="number">samples</th>'
        f"<th>the first</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _card(sample: ShownSample, colour: str) -> str:
    pills = "".join(f'<span class="pill">{_text(fact)}</span>' for fact in describe(sample))
    pills += "".join(
        f'<span class="pill warn">{_text(cut)}</span>' for cut in describe_cuts(sample)
    )
    form = ""
    if sample.problem is not None:
        body = (
            f'<p class="problem"><b>left out when it is read: {_text(sample.problem.reason)}</b> '
            f"{_text(sample.problem.detail)}</p>"
        )
    else:
        several = len(sample.images) > 1
        pictures = "".join(
            image_figures(image, number if several else None)
            for number, image in enumerate(sample.images, start=1)
        )
        form = " several" if several else " one" if pictures else ""
        pictures = f'<div class="pictures">{pictures}</div>' if pictures else ""
        text = f'<div class="text">{"".join(_turns(sample.spans))}</div>'
        body = f'<div class="body">{pictures}{text}</div>'
    return (
        f'<article class="card{form}" id="sample-{sample.number}" style="{colour}">'
        f'<header><h3><span class="soft">{sample.number}</span> '
        f'<span class="source">{_text(sample.source)}</span> '
        f'<span class="key">{_text(sample.key)}</span></h3>'
        f'<p class="pills"><span class="pill">step {sample.step}, sequence {sample.sequence}</span>'
        f"{pills}</p></header>{body}</article>"
    )


def _turns(spans: list[Span]) -> list[str]:
    """The tokens, a block per turn."""
    blocks: list[str] = []
    for span in spans:
        if (span.kind, span.text) == ("control", TURN_START) or not blocks:
            blocks.append("")
        blocks[-1] += _span(span)
    return [f'<div class="turn">{block}</div>' for block in blocks]


def _span(span: Span) -> str:
    last = span.start + len(span.ids) - 1
    trained = ", trained" if span.trained else ""
    places = f"{span.start}" if len(span.ids) == 1 else f"{span.start} to {last}"
    if span.kind == "image":
        text = html.escape(f"{len(span.ids)} x {span.text}")
        about = f"id {span.ids[0]}, tokens {places}"
    else:
        ids = " ".join(map(str, span.ids))
        text = _text(span.text).replace("\n", "<u>↵</u>\n")
        about = f"id {ids}, token {places}{trained}"
    classes = f"t {span.kind}-token{' on' if span.trained else ''}"
    return f'<span class="{classes}" data-ids="{len(span.ids)}" data-about="{about}">{text}</span>'
