"""The scores of benchmarks as one HTML file, with questions that were answered right and wrong.

What a benchmark's page shows is drawn blind to the order of its questions. Pictures are those of
the data folder, where it is still there and has the bytes that the model saw.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from nvlm.data.images.image import decode_image
from nvlm.errors import NvlmError
from nvlm.evaluate.benchmarks.entry import ImageSource
from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.folder import (
    SCORES_FILE,
    SETTINGS_FILE,
    Row,
    benchmarks_in,
    read_json,
    read_predictions,
)
from nvlm.evaluate.suite.table import number
from nvlm.views.pages import write_page
from nvlm.views.preview_figures import data_url

REPORT_FILE = "report.html"
_NUM_EXAMPLES = 6  # of those answered right, and of those answered wrong
_MAX_PICTURES = 3  # of an example
_PICTURE_SIDE = 260
_MAX_MEGAPIXELS = 100.0
_MAX_TEXT = 700
_MAX_GROUPS = 40
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Example:
    """A question and what was answered."""

    key: str
    group: str
    question: str
    options: list[str]
    truth: str
    answer: str
    score: float | None
    is_cut_off: bool
    pictures: list[str]  # data URLs
    num_more_pictures: int


@dataclass(frozen=True)
class Section:
    """A benchmark, as the page shows it."""

    scores: dict[str, Any]
    facts: list[tuple[str, str]]  # (value, what it is)
    settings: list[tuple[str, str]]
    groups: list[tuple[str, int, float]]  # (name, questions, score)
    num_more_groups: int
    examples: list[tuple[str, list[Example]]]  # (heading, those below it)
    notes: list[str]


def write_suite_page(folder: Path) -> Path:
    """Write `folder/report.html` on the benchmarks that `folder` has the scores of.

    Raises:
        DataError: it has none, or one is not done.
    """
    sections = [_section(path) for path in benchmarks_in(folder)]
    checkpoints = list(dict.fromkeys(section.scores["checkpoint"] for section in sections))
    return write_page(
        folder / REPORT_FILE,
        "nvlm.views",
        "suite.html",
        title=f"Scores of {', '.join(checkpoints)}",
        sections=sections,
        number=number,
        letters=_LETTERS,
    )


def _section(folder: Path) -> Section:
    scores = read_json(folder / SCORES_FILE)
    rows, _ = read_predictions(folder)
    chosen = _choose(rows)
    pictures, notes = _pictures(folder, [row for _, some in chosen for row in some])
    groups = [(name, part["num_samples"], part["score"]) for name, part in scores["groups"].items()]
    return Section(
        scores=scores,
        facts=_facts(scores),
        settings=[
            (key.replace("_", " "), str(value))
            for key, value in scores["settings"].items()
            if value not in (None, False, 0) and key != "split"
        ],
        groups=groups[:_MAX_GROUPS],
        num_more_groups=len(groups[_MAX_GROUPS:]),
        examples=[
            (heading, [_example(row, pictures.get(row["key"], [])) for row in some])
            for heading, some in chosen
        ],
        notes=notes,
    )


def _facts(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [(number(scores["score"]), scores["metric"])]
    if scores["standard_error"] is not None:
        facts.append((f"± {number(scores['standard_error'])}", "standard error, by bootstrap"))
    if scores["paper_score"] is not None:
        facts.append((number(scores["paper_score"]), "in the paper, of NVLM-D 1.0 72B"))
    facts.append((f"{scores['num_samples']:,}", f"questions of {scores['settings']['split']}"))
    if scores["num_skipped"]:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in scores["skipped"].items())
        facts.append((f"{scores['num_skipped']:,}", f"skipped: {reasons}"))
    if scores["num_cut_off"]:
        facts.append((f"{scores['num_cut_off']:,}", "answers cut off at the most new tokens"))
    if scores["num_without_final_answer"]:
        facts.append((f"{scores['num_without_final_answer']:,}", "answers without `Answer:`"))
    facts += [(number(value), name) for name, value in scores["parts"].items()]
    return facts


def _choose(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Some of those that are wrong, then of those that are right; or of all, without scores."""
    lots = sorted(rows, key=lambda row: zlib.crc32(row["key"].encode()))
    if any(row["score"] is None for row in rows):
        return [("Some answers", lots[:_NUM_EXAMPLES])] if lots else []
    wrong = [row for row in lots if row["score"] < 0.5]
    right = [row for row in lots if row["score"] >= 0.5]
    names = ("Wrong", "Right")
    if not {row["score"] for row in rows} <= {0, 1}:
        names = ("Scores below 0.5", "Scores of 0.5 and more")
    parts = list(zip(names, (wrong, right), strict=True))
    return [
        (f"{name}: {min(len(some), _NUM_EXAMPLES)} of {len(some):,}", some[:_NUM_EXAMPLES])
        for name, some in parts
        if some
    ]


def _example(row: Row, pictures: list[str]) -> Example:
    prompt = row["messages"][-1]["content"]
    return Example(
        key=row["key"],
        group=row["group"],
        question=_cut(prompt),
        # Prompts of multiple choices have the options already.
        options=[] if all(some in prompt for some in row["options"]) else row["options"],
        truth=_cut(_truth(row["truth"])),
        answer=_cut(row["answer"]),
        score=row["score"],
        is_cut_off=row["finish_reason"] == "length",
        pictures=pictures,
        num_more_pictures=len(row["images"]) - len(pictures),
    )


def _truth(truth: Mapping[str, Any]) -> str:
    """The one value of a truth, or all with their names."""
    values = list(truth.values())
    return _text(values[0]) if len(values) == 1 else json.dumps(truth, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"


def _pictures(folder: Path, rows: Sequence[Row]) -> tuple[dict[str, list[str]], list[str]]:
    """Data URLs of the questions' own pictures, by key; and what kept them away."""
    about = read_json(folder / SETTINGS_FILE)
    benchmark = BENCHMARKS[about["benchmark"]]
    wanted = {row["key"]: row["images"] for row in rows if row["images"]}
    found: dict[str, list[str]] = {}
    try:
        source = Path(about["data_folder"]) / benchmark.name
        for item in benchmark.read(source, about["settings"]["split"]):
            if len(found) == len(wanted):
                break
            if item.key in wanted:
                # Examples' pictures stand before the question's own.
                hashes = wanted[item.key][len(wanted[item.key]) - len(item.images) :]
                found[item.key] = _urls(item.images, hashes)
    except (NvlmError, OSError) as error:
        return found, [f"no pictures: {error}"]
    if any(not urls for urls in found.values()):
        return found, ["some pictures are not those that were asked about: the data have changed"]
    return found, []


def _urls(images: Sequence[ImageSource], hashes: Sequence[str]) -> list[str]:
    urls = []
    for read, wanted in list(zip(images, hashes))[:_MAX_PICTURES]:
        with suppress(NvlmError, OSError):
            data = read()
            if hashlib.sha256(data).hexdigest() == wanted:
                urls.append(data_url(_small(data)))
    return urls


def _small(data: bytes) -> Image.Image:
    image = Image.fromarray(decode_image(data, _MAX_MEGAPIXELS))
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return image
