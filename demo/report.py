"""The demo's page: one HTML file that needs nothing else, readable in light and dark.

Everything comes from `Report`, so the page can be written from any run, and by tests without one.
"""

from __future__ import annotations

import base64
import html
import io
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from PIL import Image

from nvlm.evaluate.score import TaskScore, Truth, score_answer
from nvlm.files import write_text

# Pictures are shown at most this large; larger ones are shrunk and stored as JPEG.
_MAX_PICTURE_SIDE = 640
# The thumbnail tile is shown this wide.
_THUMBNAIL_SIDE = 84
_STAGE_COLOURS = ("var(--first)", "var(--second)")


@dataclass(frozen=True)
class StageResult:
    """A training stage: its loss at each step, and accuracy on the held-out samples after it."""

    name: str
    description: str
    steps: list[int]
    losses: list[float]
    scores: list[TaskScore]


@dataclass(frozen=True)
class Check:
    """Something the demo promises: what was looked at, what was found, and whether it holds."""

    name: str
    found: str
    holds: bool


@dataclass(frozen=True)
class StepRecord:
    """A step of the demo, and how long its command took (in this call or an earlier one)."""

    title: str
    command: str
    log: str
    seconds: float


@dataclass(frozen=True)
class Picture:
    """An image as the model sees it: cut into columns x rows tiles, tagged, thumbnail last."""

    data: bytes = field(repr=False)
    columns: int = 1
    rows: int = 1
    tags: list[str] = field(default_factory=list)  # one per tile, thumbnail included
    has_thumbnail: bool = False


@dataclass(frozen=True)
class GalleryItem:
    sample_id: str
    source: str
    task: str
    earlier_turns: list[tuple[str, str]]  # (role, content) before the question, images unmarked
    question: str
    truth: list[str]  # accepted answers
    answers: list[tuple[str, str]]  # (stage name, answer), in order of the stages
    export_agrees: bool
    pictures: list[Picture]
    num_tokens_per_tile: int
    image_token: str


@dataclass(frozen=True)
class Report:
    title: str
    subtitle: str
    stages: list[StageResult]
    checks: list[Check]
    num_compared: int
    num_agreeing: int
    num_compared_tokens: int
    gallery: list[GalleryItem]
    task_descriptions: dict[str, str]
    goal_tasks: list[str]
    goal_points: float  # percentage points over the majority answer that each goal task must reach
    steps: list[StepRecord]
    seconds: float


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path`, beside and renamed."""
    template = string.Template(
        resources.files("demo").joinpath("report.html").read_text(encoding="utf-8")
    )
    page = template.substitute(
        title=html.escape(report.title),
        subtitle=html.escape(report.subtitle),
        facts=_facts(report),
        accuracy=_accuracy_table(report),
        charts="".join(
            _chart(stage, _STAGE_COLOURS[number % 2]) for number, stage in enumerate(report.stages)
        ),
        checks=_checks_table(report.checks),
        gallery_note=_gallery_note(report),
        gallery=_gallery(report),
        steps=_steps_table(report),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)
    return path


def format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _facts(report: Report) -> str:
    kept = sum(check.holds for check in report.checks)
    last = report.stages[-1]
    goals = [score for score in last.scores if score.task in report.goal_tasks]
    facts = [
        (
            f"{score.accuracy:.0%} {score.task}",
            f"after {last.name}; the commonest answer alone gives {score.majority:.0%}",
            score.points_over_majority >= report.goal_points,
        )
        for score in goals
    ]
    facts.append(
        (
            f"{report.num_agreeing} of {report.num_compared} equal",
            f"answers of the Hugging Face export and of Megatron, token by token "
            f"({report.num_compared_tokens:,} tokens)",
            report.num_agreeing == report.num_compared > 0,
        )
    )
    facts.append(
        (
            f"{kept} of {len(report.checks)} checks hold",
            f"whole run: {format_seconds(report.seconds)}",
            kept == len(report.checks),
        )
    )
    return "".join(
        f'<div class="fact {_class(good)}"><b>{html.escape(value)}</b>'
        f"<span>{html.escape(text)}</span></div>"
        for value, text, good in facts
    )


def _accuracy_table(report: Report) -> str:
    names = [stage.name for stage in report.stages]
    head = "".join(
        f'<th class="number"><i class="swatch" style="background:{colour}"></i>'
        f"{html.escape(name)}</th>"
        for name, colour in [("majority answer", "var(--base)")]
        + [(f"after {name}", _STAGE_COLOURS[i % 2]) for i, name in enumerate(names)]
    )
    by_stage = [{score.task: score for score in stage.scores} for stage in report.stages]
    rows = []
    for task in _task_order(report):
        scores = [scores[task] for scores in by_stage]
        shares = [("var(--base)", scores[0].majority)] + [
            (_STAGE_COLOURS[i % 2], score.accuracy) for i, score in enumerate(scores)
        ]
        bars = "".join(
            f'<i style="width:{100 * share:.1f}%;background:{colour}" title="{share:.1%}"></i>'
            for colour, share in shares
        )
        cells = "".join(f'<td class="number">{share:.1%}</td>' for _, share in shares)
        gain = scores[-1].points_over_majority
        goal = ' <span class="pill plain">goal</span>' if task in report.goal_tasks else ""
        rows.append(
            f"<tr><td><b>{html.escape(task)}</b>{goal}<br><span class='soft small'>"
            f"{html.escape(report.task_descriptions.get(task, ''))}<br>"
            f"{scores[0].num_samples} samples; commonest: "
            f"“{html.escape(_short(scores[0].majority_answer))}”"
            f'</span></td>{cells}<td class="number">{gain:+.0f}</td>'
            f'<td><div class="bars">{bars}</div></td></tr>'
        )
    return (
        f'<table><thead><tr><th>Task</th>{head}<th class="number">points over majority</th>'
        f"<th>0 to 100 %</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _checks_table(checks: Sequence[Check]) -> str:
    rows = "".join(
        f'<tr><td><span class="pill {_class(check.holds)}">{"holds" if check.holds else "fails"}'
        f"</span></td><td>{html.escape(check.name)}</td>"
        f'<td class="soft">{html.escape(check.found)}</td></tr>'
        for check in checks
    )
    return (
        f"<table><thead><tr><th></th><th>Promise</th><th>Found</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _steps_table(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(step.title)}</td>"
        f'<td class="number">{format_seconds(step.seconds)}</td>'
        f"<td><pre>{html.escape(step.command)}</pre>"
        f"<span class='soft small mono'>{html.escape(step.log)}</span></td></tr>"
        for step in report.steps
    )
    return (
        '<table><thead><tr><th>Step</th><th class="number">Time</th><th>Command and log</th></tr>'
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _task_order(report: Report) -> list[str]:
    """Tasks with a goal first, then by name."""
    tasks = [score.task for score in report.stages[-1].scores]
    return sorted(tasks, key=lambda task: (task not in report.goal_tasks, task))


def _gallery_note(report: Report) -> str:
    return html.escape(
        "The first samples of each task's evaluation, in order, not picked by result. Images are "
        "drawn with the tiles that the model was given after SFT; the grey text under each answer "
        "is the exact tag text, with the image tokens of a tile shown as a count."
    )


def _gallery(report: Report) -> str:
    scores = {score.task: score for score in report.stages[-1].scores}
    parts = []
    for task in _task_order(report):
        items = [item for item in report.gallery if item.task == task]
        if not items:
            continue
        score = scores[task]
        cards = "".join(_card(item) for item in items)
        parts.append(
            f"<h3>{html.escape(task)}</h3><p class='soft small'>"
            f"{html.escape(report.task_descriptions.get(task, ''))}; {score.num_correct} of "
            f"{score.num_samples} right after {html.escape(report.stages[-1].name)}; "
            f'{len(items)} shown</p><div class="gallery">{cards}</div>'
        )
    return "".join(parts)


def _card(item: GalleryItem) -> str:
    right = _is_right(item.answers[-1][1], item.truth)
    pictures = "".join(
        _picture(picture, number, len(item.pictures))
        for number, picture in enumerate(item.pictures, start=1)
    )
    pictures = f'<div class="pictures">{pictures}</div>' if pictures else ""
    earlier = "".join(
        f'<p class="earlier"><b>{html.escape(role)}:</b> {html.escape(content)}</p>'
        for role, content in item.earlier_turns
    )
    answers = "".join(_answer(name, answer, item.truth) for name, answer in item.answers)
    export = (
        '<dd class="good"><span class="mark">✓</span> same tokens</dd>'
        if item.export_agrees
        else '<dd class="bad"><span class="mark">✗</span> other tokens</dd>'
    )
    tags = "".join(
        f'<p class="tags mono">{_tag_text(picture, item)}</p>' for picture in item.pictures
    )
    return (
        f'<article class="card {_class(right)}">{pictures}<div class="body">{earlier}'
        f'<p class="question">{html.escape(item.question)}</p>'
        f"<dl><dt>truth</dt><dd>{html.escape(' / '.join(item.truth))}</dd>{answers}"
        f"<dt>HF export</dt>{export}</dl>{tags}"
        f'<div class="identity"><span>{html.escape(item.source)} / {html.escape(item.sample_id)}'
        f"</span></div></div></article>"
    )


def _is_right(answer: str, truth: list[str]) -> bool:
    return score_answer(answer, Truth(truth)) == 1


def _answer(name: str, answer: str, truth: list[str]) -> str:
    right = _is_right(answer, truth)
    shown = html.escape(answer) if answer.strip() else "<i>(empty)</i>"
    return (
        f'<dt>{html.escape(name)}</dt><dd class="{_class(right)}">'
        f'<span class="mark">{"✓" if right else "✗"}</span> {shown}</dd>'
    )


def _picture(picture: Picture, number: int, num_pictures: int) -> str:
    source, width, height = _data_uri(picture.data, _MAX_PICTURE_SIDE)
    num_cells = picture.columns * picture.rows
    # Small images (a digit is one tile) are enlarged so that a person can read them.
    shown_width = max(width, min(320, 160 * picture.columns)) if width < 320 else width
    # Each cell carries its tag, or its number alone where a card has no room for the tag.
    prefix = "tile_" if min(shown_width, 320) / picture.columns >= 64 else ""
    cells = "".join(
        f"<span>{f'<b>{prefix}{index}</b>' if num_cells > 1 else ''}</span>"
        for index in range(1, num_cells + 1)
    )
    tiles = f"{picture.columns} × {picture.rows} tiles" if num_cells > 1 else "1 tile"
    name = f"image {number}: {tiles}" if num_pictures > 1 else tiles
    first = (
        f'<figure class="picture"><div class="frame"><img src="{source}" alt="image {number}" '
        f'width="{shown_width}" height="{round(height * shown_width / width)}">'
        f'<div class="tiles" style="grid-template:repeat({picture.rows},1fr)/'
        f'repeat({picture.columns},1fr)">{cells}</div></div>'
        f"<figcaption>{name}</figcaption></figure>"
    )
    if not picture.has_thumbnail:
        return first
    thumbnail, _, _ = _data_uri(picture.data, _THUMBNAIL_SIDE, square=True)
    return first + (
        f'<figure class="picture"><div class="frame"><img src="{thumbnail}" alt="thumbnail" '
        f'width="{_THUMBNAIL_SIDE}" height="{_THUMBNAIL_SIDE}"><div class="tiles"><span></span>'
        f"</div></div><figcaption>thumbnail</figcaption></figure>"
    )


def _tag_text(picture: Picture, item: GalleryItem) -> str:
    pads = (
        f'<span class="pads">[{item.num_tokens_per_tile} × {html.escape(item.image_token)}]</span>'
    )
    tiles = "".join(f'<span class="tile">{html.escape(tag)}{pads}</span>' for tag in picture.tags)
    return f"{html.escape('<Image>')}{tiles}{html.escape('</Image>')}"


def _data_uri(data: bytes, max_side: int, square: bool = False) -> tuple[str, int, int]:
    """(data URI, width, height). `square`: squashed, as the thumbnail tile is."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if square:
        image = image.resize((max_side, max_side), Image.Resampling.BICUBIC)
    elif max(image.size) > max_side:
        image.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    # Drawn pages and digits have few colours: PNG keeps them small and sharp. Photographs: JPEG.
    few_colours = image.getcolors(maxcolors=4096) is not None
    if few_colours:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=88)
    kind = "png" if few_colours else "jpeg"
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind};base64,{text}", *image.size


def _chart(stage: StageResult, colour: str) -> str:
    """Inline SVG of the stage's loss over its steps, on a linear scale from zero."""
    width, height, left, right, top, bottom = 560, 250, 40, 52, 12, 30
    inner_width, inner_height = width - left - right, height - top - bottom
    first, last = stage.steps[0], stage.steps[-1]
    ceiling, spacing = _axis(max(stage.losses))

    def x(step: float) -> float:
        return left + inner_width * (step - first) / max(last - first, 1)

    def y(loss: float) -> float:
        return top + inner_height * (1 - loss / ceiling)

    lines = []
    for tick in range(round(ceiling / spacing) + 1):
        value = tick * spacing
        lines.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" '
            f'y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
            f'<text x="{left - 7}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>'
        )
    for step in sorted({first, round((first + last) / 2), last}):
        lines.append(
            f'<text x="{x(step):.1f}" y="{height - 10}" '
            f'text-anchor="{"end" if step == last else "middle"}">{step:,}</text>'
        )
    running = _running_mean(stage.losses)
    raw_points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(stage.steps, stage.losses))
    mean_points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(stage.steps, running))
    return (
        f'<div class="panel chart"><h3>{html.escape(stage.name)}</h3>'
        f'<p class="soft small">{html.escape(stage.description)}</p>'
        f'<svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="loss of {html.escape(stage.name)}">'
        f"{''.join(lines)}"
        f'<polyline points="{raw_points}" fill="none" stroke="{colour}" opacity=".4"/>'
        f'<polyline points="{mean_points}" fill="none" stroke="{colour}" stroke-width="2.4" '
        f'stroke-linejoin="round"/>'
        f'<text x="{x(last) + 7:.1f}" y="{y(running[-1]) + 4:.1f}" '
        f'style="fill:{colour};font-weight:600">{running[-1]:.3f}</text>'
        f'<text x="{width - 6}" y="{height - 10}" text-anchor="end">step</text></svg></div>'
    )


def _axis(highest: float) -> tuple[float, float]:
    """(top of the axis, distance of its lines): 1, 2 or 5 times a power of ten, 3 to 6 lines."""
    highest = max(highest, 1e-6)
    power = 10.0 ** math.floor(math.log10(highest))
    spacing = next(
        power * factor
        for factor in (0.2, 0.5, 1, 2, 5)
        if highest / (power * factor) <= 5
    )  # fmt: skip
    return spacing * math.ceil(highest / spacing), spacing


def _running_mean(values: Sequence[float]) -> list[float]:
    """Exponential mean over about 5 % of the steps, corrected for its start."""
    decay = 1 - 1 / max(2.0, len(values) / 20)
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = decay * mean + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        result.append(mean / weight)
    return result


def _short(text: str, length: int = 28) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _class(good: bool) -> str:
    return "good" if good else "bad"
