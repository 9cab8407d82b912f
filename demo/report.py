"""The demo's page: one HTML file that needs nothing else, readable in light and dark.

Everything comes from `Report`, so the page can be written from any run, and by tests without one.
What it looks like is in templates/report.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demo.loss_chart import loss_chart
from demo.shown_picture import Picture, show_picture
from nvlm.evaluate.score import TaskScore, Truth, score_answer
from nvlm.views.pages import write_page


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
    tasks = _task_order(report)
    last = report.stages[-1]
    by_stage = [{score.task: score for score in stage.scores} for stage in report.stages]
    return write_page(
        path,
        "demo",
        "report.html",
        report=report,
        last=last,
        tasks=tasks,
        # Of each task, a score per stage.
        scores_by_task={task: [scores[task] for scores in by_stage] for task in tasks},
        goals=[score for score in last.scores if score.task in report.goal_tasks],
        num_kept=sum(check.holds for check in report.checks),
        charts=[loss_chart(stage.steps, stage.losses) for stage in report.stages],
        gallery={task: [item for item in report.gallery if item.task == task] for task in tasks},
        show_picture=show_picture,
        is_right=_is_right,
        shorten=_shorten,
        format_seconds=format_seconds,
    )


def format_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _task_order(report: Report) -> list[str]:
    """Tasks with a goal first, then by name."""
    tasks = [score.task for score in report.stages[-1].scores]
    return sorted(tasks, key=lambda task: (task not in report.goal_tasks, task))


def _is_right(answer: str, truth: list[str]) -> bool:
    return score_answer(answer, Truth(truth)) == 1


def _shorten(text: str, length: int = 28) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
