"""What a benchmark is: a reader of its published files, a prompt, settings and a scorer.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Reads an image's encoded bytes (JPEG, PNG, ...) when its turn comes.
ImageSource = Callable[[], bytes]


@dataclass(frozen=True)
class Item:
    """One question of a benchmark, as published."""

    key: str  # unique within the benchmark's split
    question: str
    images: Sequence[ImageSource]  # in the order in which the question shows them
    truth: Mapping[str, Any]  # what the scorer needs; JSON
    options: Sequence[str] = ()  # texts of a multiple choice, from A on
    group: str = ""  # subject, category or kind; scores are also given per group
    fields: Mapping[str, Any] = field(default_factory=dict)  # JSON that prompt or summary need


@dataclass(frozen=True)
class Summary:
    """What a benchmark reports beside the mean of its items' scores."""

    score: float  # in the benchmark's own scale, such as 0 to 100, or points up to 1,000
    parts: Mapping[str, float] = field(default_factory=dict)  # by group or by metric


@dataclass(frozen=True)
class Benchmark:
    """One entry of the table."""

    name: str  # as on the command line: `chartqa`
    title: str  # as in papers: `ChartQA`
    metric: str  # for people: `relaxed accuracy`
    splits: Sequence[str]  # the first is the default
    # Below `--data DIR/NAME`: what `read` looks for, as glob patterns with a word on each.
    files: Mapping[str, str]
    source: str  # where the files come from: a page, or a hub id
    # (folder, split) -> items in the published order. Raises DataError that names the file and key.
    read: Callable[[Path, str], Iterator[Item]]
    # The user turn: an `<image>` mark for each image, and the question.
    prompt: Callable[[Item], str]
    # (item, answer) -> between 0 and 1.
    score: Callable[[Item, str], float]
    max_new_tokens: int = 32
    system_message: str = "Answer the questions."
    # The model card's or the released scripts' wording where it is known: `published`; else
    # `assumed`.
    prompt_is: str = "assumed"
    # (items, answers, their scores) -> the number that papers print. None: 100 x the mean score.
    summarise: Callable[[Sequence[Item], Sequence[str], Sequence[float]], Summary] | None = None
    # Of the paper's tables (NVLM-D 1.0 72B), for comparison; None: not reported.
    paper_score: float | None = None
    paper_split: str | None = None  # the split of `paper_score`; None: the default split
    # The split to draw few-shot examples from, and an example's answer as a model should give it.
    train_split: str | None = None
    answer: Callable[[Item], str] | None = None
    # Called before a model is loaded: what scoring needs beside the files, such as a program.
    # Raises NvlmError that says what is missing and where to get it.
    check: Callable[[], None] | None = None
    # Of `splits`, those whose truth is not published: their answers are written, not scored.
    unscored_splits: Sequence[str] = ()
    # (items, answers) -> JSON as the benchmark's own server takes it, of any split.
    submission: Callable[[Sequence[Item], Sequence[str]], Any] | None = None
    # Whether `summarise` can be asked some hundred times about items drawn at random, some of them
    # twice, for its standard error. False where it takes seconds, or judges items in pairs.
    can_resample: bool = True
