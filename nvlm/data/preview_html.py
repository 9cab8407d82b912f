"""The preview as one HTML file that needs nothing else and no JavaScript."""

from __future__ import annotations

import html
import string
from importlib import resources
from pathlib import Path

from nvlm.data.chat import TURN_START
from nvlm.data.preview import (
    PlannedSequence,
    Preview,
    ShownSample,
    describe,
    describe_cuts,
)
from nvlm.data.preview_pictures import image_figures
from nvlm.data.preview_spans import Span, visible
from nvlm.data.stats import SourceStats

# Between the hues of sources; the golden angle keeps any number of them apart.
_HUE_STEP = 137.508
_FIRST_HUE = 212


def write_page(preview: Preview, path: Path) -> Path:
    """Write the page to `path`, beside and renamed."""
    template = string.Template(
        resources.files("nvlm.data").joinpath("preview.html").read_text(encoding="utf-8")
    )
    config = preview.config
    hues = {
        name: round(_FIRST_HUE + number * _HUE_STEP) % 360
        for number, name in enumerate(preview.stats.sources)
    }
    page = template.substitute(
        title=_text(f"{config.run.name}: what training will see"),
        subtitle=_text(
            f"{len(preview.samples)} samples in training order, seed {config.train.seed}, made by "
            "the run's own planner, reader and encoder."
        ),
        facts=_facts(preview),
        samples="".join(_card(sample, hues[sample.source]) for sample in preview.samples),
        packs_note=_packs_note(preview),
        legend="".join(
            f'<span class="source" style="--hue:{hue}">{_text(name)}</span>'
            for name, hue in hues.items()
        ),
        packs="".join(_sequence(preview, sequence, hues) for sequence in preview.sequences),
        sources_note=_sources_note(preview),
        sources=_sources_table(preview, hues),
        rejected=_rejected_table(preview),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(page, encoding="utf-8")
    beside.replace(path)
    return path


def _text(text: str) -> str:
    return html.escape(visible(text))


def _facts(preview: Preview) -> str:
    stats = preview.stats
    sources = stats.sources.values()
    draws = sum(s.samples + s.dropped for s in sources)
    tokens = sum(s.image_tokens + s.text_tokens for s in sources)
    facts = [
        (f"{stats.steps:,} steps", f"of {preview.config.train.global_batch_size} sequences"),
        (f"{_share(stats.padding, 1)} padding", f"in {stats.packs:,} sequences"),
        (
            f"{_share(sum(s.image_tokens for s in sources), tokens)} image tokens",
            f"of {round(tokens):,}",
        ),
        (
            f"{_share(sum(s.shortened_tiles for s in sources), draws)} fewer tiles",
            f"to fit; {_share(sum(s.cut_turns for s in sources), draws)} lose their last turns",
        ),
        (f"{_share(sum(s.dropped for s in sources), draws)} dropped", "too long for any sequence"),
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
        f"one with tiles, up to {budget}. A part is a sample, in its source's colour; one that is "
        "shown below leads there."
    )


def _sequence(preview: Preview, sequence: PlannedSequence, hues: dict[str, int]) -> str:
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
        colour = f"--hue:{hues[document.source]}"
        width = f"{100 * document.length / max_tokens:.4f}%"
        attributes = f'style="{colour};width:{width}" data-tokens="{document.length}"'
        if document.shown is None:
            tokens.append(f'<i {attributes} title="{title}"></i>')
        else:
            tokens.append(
                f'<a {attributes} title="{title}" href="#sample-{document.shown}">'
                f"{document.shown}</a>"
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
        f"What the blend gives, {how}. Shares of shortened, cut and dropped samples are of those "
        "drawn from the source; rejected ones are never drawn."
    )


def _sources_table(preview: Preview, hues: dict[str, int]) -> str:
    rejected = dict.fromkeys(hues, 0)
    for entry in preview.rejected:
        rejected[entry.source] += entry.count
    stats = preview.stats.sources
    all_tokens = sum(s.image_tokens + s.text_tokens for s in stats.values())
    rows = []
    for name, source in stats.items():
        cells = "".join(
            f'<td class="number{" warn" if warns else ""}">{_text(value)}</td>'
            for value, warns in _source_cells(source, all_tokens, rejected[name])
        )
        rows.append(
            f'<tr><td><span class="source" style="--hue:{hues[name]}">{_text(name)}</span></td>'
            f"{cells}</tr>"
        )
    names = (
        "samples", "passes", "tokens", "of all", "tiles", "fewer tiles", "turns cut", "dropped",
        "rejected",
    )  # fmt: skip
    head = "".join(f'<th class="number">{name}</th>' for name in names)
    return (
        f'<table class="sources"><thead><tr><th>Source</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _source_cells(
    source: SourceStats, all_tokens: float, num_rejected: int
) -> list[tuple[str, bool]]:
    tokens = source.image_tokens + source.text_tokens
    draws = source.samples + source.dropped
    return [
        (f"{round(source.samples):,}", False),
        (f"{source.passes:.2f}", False),
        (f"{round(tokens):,}", False),
        (_share(tokens, all_tokens), False),
        (f"{round(source.tiles):,}", False),
        (_share(source.shortened_tiles, draws), source.shortened_tiles > 0),
        (_share(source.cut_turns, draws), source.cut_turns > 0),
        (_share(source.dropped, draws), source.dropped > 0),
        (f"{num_rejected:,}", num_rejected > 0),
    ]


def _rejected_table(preview: Preview) -> str:
    if not preview.rejected:
        return '<p class="soft">Indexing left no sample out.</p>'
    rows = []
    for entry in preview.rejected:
        example = ""
        if entry.example is not None:
            name = f"{entry.example.shard} {entry.example.key or '(shard)'}"
            example = f"<b>{_text(name)}</b> {_text(entry.example.detail)}"
        rows.append(
            f"<tr><td>{_text(entry.source)}</td><td>{_text(entry.reason)}</td>"
            f'<td class="number">{entry.count:,}</td><td class="soft">{example}</td></tr>'
        )
    return (
        "<table><thead><tr><th>Source</th><th>Reason</th><th class='number'>Samples</th>"
        f"<th>The first</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _card(sample: ShownSample, hue: int) -> str:
    pills = "".join(f'<span class="pill">{_text(fact)}</span>' for fact in describe(sample))
    pills += "".join(
        f'<span class="pill warn">{_text(cut)}</span>' for cut in describe_cuts(sample)
    )
    if sample.problem is not None:
        body = (
            f'<p class="problem"><b>left out when it is read: {_text(sample.problem.reason)}</b> '
            f"{_text(sample.problem.detail)}</p>"
        )
    else:
        pictures = "".join(image_figures(image) for image in sample.images)
        pictures = f'<div class="pictures">{pictures}</div>' if pictures else ""
        body = f'{pictures}<div class="text">{"".join(_turns(sample.spans))}</div>'
    return (
        f'<article class="card" id="sample-{sample.number}" style="--hue:{hue}">'
        f'<header><h3><span class="soft">{sample.number}</span> '
        f'<span class="source" style="--hue:{hue}">{_text(sample.source)}</span> '
        f"{_text(sample.key)}</h3>"
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
        title = f"id {span.ids[0]}, tokens {places}"
    else:
        ids = " ".join(map(str, span.ids))
        text = _text(span.text).replace("\n", "<u>↵</u>\n")
        title = f"id {ids}, token {places}{trained}"
    classes = f"t {span.kind}-token{' on' if span.trained else ''}"
    return f'<span class="{classes}" data-ids="{len(span.ids)}" title="{title}">{text}</span>'
