"""The numbers of a run: what its folder and the files beside it say, read anew each time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvlm.ablate.cells import Run
from nvlm.ablate.grid_file import Evaluation
from nvlm.ablate.tasks import answers_file, mir_file, suite_folder
from nvlm.config import RunConfig
from nvlm.errors import DataError
from nvlm.evaluate.suite.folder import SCORES_FILE, read_predictions
from nvlm.files import read_json_lines
from nvlm.sizes.adapters import frozen_patterns, run_parameters_by_name
from nvlm.sizes.parameters import count_parameters
from nvlm.views.report.run_record import ReportError, RunRecord, read_run

# Numbers of which less is better, by the beginning of their names.
_LOWER_IS_BETTER = ("validation/loss", "train/loss", "mir")
# Of the end of a run: the training loss of a single step says little.
_SHARE_OF_STEPS = 0.1

Question = tuple[str, ...]


@dataclass
class Measured:
    """A finished run.

    metrics: name -> number.
    questions: name of a metric -> question -> its score, where the metric is a mean over questions.
    hours: of its steps and validations, times its processes.
    tokens: of samples, padding not counted, over all steps.
    """

    metrics: dict[str, float]
    questions: dict[str, dict[Question, float]] = field(default_factory=dict)
    hours: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0


def is_lower_better(metric: str) -> bool:
    return metric.startswith(_LOWER_IS_BETTER)


def measure(
    run: Run, asked: Evaluation, processes: int
) -> tuple[Measured | None, RunRecord | None]:
    """What a run measured and its curves; None: it is not done, or has not begun.

    Raises:
        DataError: files of its answers are damaged.
    """
    try:
        record = read_run(run.folder)
    except ReportError:
        return None, None
    losses = record.series("loss")
    if not len(losses) or losses.steps[-1] < run.config.train.steps:
        return None, record
    found = Measured({})
    num_last = max(1, round(_SHARE_OF_STEPS * run.config.train.steps))
    found.metrics["train/loss"] = float(losses.values[-num_last:].mean())
    for name, series in record.between.items():
        if len(series) and series.steps[-1] == run.config.train.steps and _is_metric(name):
            found.metrics[name] = float(series.values[-1])
    seconds = record.series("seconds").sum() + record.series("validation/seconds").sum()
    found.hours = seconds * processes / 3600
    found.tokens = round(record.series("all_tokens").sum())
    found.trained_tokens = round(record.series("tokens").sum())
    if asked.data_root is not None:
        _add_answers(found, answers_file(run, asked))
    _add_suite(found, suite_folder(run, asked), asked)
    if asked.mir is not None:
        _add_mir(found, mir_file(run, asked))
    return found, record


def _is_metric(name: str) -> bool:
    if name in ("validation/seconds", "validation/skipped"):
        return False
    return name.startswith(("validation/", "benchmark/"))


def _add_answers(found: Measured, path: Path) -> None:
    """`answers`: mean score of all questions; `answers/TASK`: of a task's."""
    if not path.is_file():
        return
    by_task: dict[str, dict[Question, float]] = {}
    try:
        for row in read_json_lines(path):
            question = (row["source"], row["sample_id"], row["question"])
            by_task.setdefault(row["task"], {})[question] = float(row["score"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: is damaged: remove it, and run again: {error}") from None
    every = {question: score for scores in by_task.values() for question, score in scores.items()}
    for name, scores in [
        ("answers", every),
        *((f"answers/{task}", s) for task, s in by_task.items()),
    ]:
        found.metrics[name] = float(np.mean(list(scores.values())))
        found.questions[name] = scores


def _add_suite(found: Measured, folder: Path, asked: Evaluation) -> None:
    """`suite/NAME`: the number that papers print."""
    for name in asked.suite:
        if not (folder / name / SCORES_FILE).is_file():
            continue
        score = _read_json(folder / name / SCORES_FILE).get("score")
        if score is None:  # the truths are not published
            continue
        found.metrics[f"suite/{name}"] = float(score)
        rows, _ = read_predictions(folder / name)
        found.questions[f"suite/{name}"] = {(row["key"],): float(row["score"]) for row in rows}


def _add_mir(found: Measured, path: Path) -> None:
    if path.is_file():
        found.metrics["mir"] = float(_read_json(path)["mir"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}; remove it, and run again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: is no JSON object; remove it, and run again")
    return value


def trained_parameters(config: RunConfig) -> tuple[int, int]:
    """(parameters of the model, those that train in this stage)."""
    count = count_parameters(run_parameters_by_name(config), frozen_patterns(config))
    return count.total, count.trainable
