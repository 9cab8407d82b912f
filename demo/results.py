"""From the files that the demo's steps wrote to what its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from demo.report import Check, GalleryItem, Report, StageResult, StepRecord
from demo.shown_picture import Picture
from demo.steps import Step
from nvlm.config import RunConfig
from nvlm.data.images.image import read_image_size
from nvlm.data.images.tiling import choose_grid
from nvlm.data.samples.sample import IMAGE_MARK
from nvlm.errors import NvlmError
from nvlm.evaluate.agreement import Agreement, compare_answers
from nvlm.evaluate.question_files import read_image_files
from nvlm.evaluate.questions import Question
from nvlm.evaluate.report import print_scores
from nvlm.evaluate.score import TaskScore, score_tasks
from nvlm.sizes.visual import VisualLayout

# The tasks are the sources of build_data.py.
TASK_DESCRIPTIONS = {
    "digits": "read one handwritten digit",
    "search": "read the one digit on a sheet of coloured blocks: needs the right tile",
    "sheets": "read the digit at a row and column of a sheet: needs the right tile",
    "ocr": "transcribe a document",
    "charts": "tallest, shortest or number of bars",
    "photos": "caption a photograph",
    "multi_image": "questions about two or three images",
    "text": "questions without an image",
}
GOAL_TASKS = ["digits", "search"]
# Percentage points over the majority answer that each must reach after the last stage.
GOAL_POINTS = 30.0
NUM_SHOWN_PER_TASK = 9


@dataclass(frozen=True)
class StageOutcome:
    """A finished stage: its settings, the lines of its metrics, and its answers."""

    name: str
    config: RunConfig
    metrics: list[dict]
    answers: list[dict]


def build_report(
    questions: Sequence[Question],
    outcomes: Sequence[StageOutcome],
    export_answers: Sequence[Mapping],
    frozen: Sequence[Mapping],
    steps: Sequence[StepRecord],
) -> Report:
    """Everything the report shows.

    Args:
        questions: the held-out questions, in the order in which they were asked.
        outcomes: the training stages in order; the last one was exported.
        export_answers: what the exported model answered.
        frozen: per stage, the fields of `demo.frozen.FrozenComparison`.
        steps: what was run.

    Raises:
        NvlmError: a goal's task is not among the questions.
    """
    stages = [_stage_result(outcome) for outcome in outcomes]
    agreement = compare_answers(outcomes[-1].answers, export_answers)
    checks = [_goal_check(task, stages[-1]) for task in GOAL_TASKS]
    checks.append(_agreement_check(agreement))
    for outcome, comparison in zip(outcomes, frozen, strict=True):
        checks.append(_frozen_check(outcome.name, comparison))
    model = outcomes[-1].config.model
    return Report(
        title="NVLM demo",
        subtitle=(
            f"A tiny NVLM-D ({model.vision.num_layers}-layer InternViT, "
            f"{model.language.num_layers}-layer Qwen2, tiles of {model.vision.image_size} px and "
            f"{model.num_tokens_per_tile} tokens) trained with Megatron-core, exported to "
            f"Hugging Face format, and asked {len(questions)} held-out questions."
        ),
        stages=stages,
        checks=checks,
        num_compared=agreement.num_samples,
        num_agreeing=agreement.num_equal,
        num_compared_tokens=agreement.num_tokens,
        gallery=_gallery(questions, outcomes, agreement),
        task_descriptions=TASK_DESCRIPTIONS,
        goal_tasks=GOAL_TASKS,
        goal_points=GOAL_POINTS,
        steps=list(steps),
        seconds=sum(step.seconds for step in steps),
    )


def print_accuracy(
    console: Console, stages: Sequence[StageResult], evaluations: Sequence[Step]
) -> None:
    """The table that `nvlm evaluate` prints of each stage, under the command that printed it."""
    for stage, evaluation in zip(stages, evaluations, strict=True):
        console.print(f"\n[bold]Held-out accuracy after {stage.name}[/bold]")
        console.print(f"  {evaluation.shown_command}", style="dim", markup=False)
        print_scores(stage.scores)


def _stage_result(outcome: StageOutcome) -> StageResult:
    freeze = outcome.config.stage.freeze
    stage = outcome.config.stage
    cut = f"up to {stage.max_num_tiles} tiles" if stage.max_num_tiles > 1 else "one tile"
    has_thumbnail = outcome.config.max_tiles_per_image > stage.max_num_tiles
    thumbnail = " and a thumbnail" if has_thumbnail else ""
    tags = "with tags" if stage.tile_tags != "none" else "without tags"
    return StageResult(
        name=outcome.name,
        description=(
            f"Frozen: {', '.join(freeze) or 'nothing'}. An image is {cut}{thumbnail}, {tags}."
        ),
        steps=[line["step"] for line in outcome.metrics],
        losses=[line["loss"] for line in outcome.metrics],
        scores=score_tasks(outcome.answers),
    )


def _goal_check(task: str, stage: StageResult) -> Check:
    score = _find(stage.scores, task)
    return Check(
        name=f"{task}: at least {GOAL_POINTS:g} points over the majority answer after {stage.name}",
        found=(
            f"{score.accuracy:.1%} against {score.majority:.1%}: "
            f"{score.points_over_majority:+.1f} points"
        ),
        holds=score.points_over_majority >= GOAL_POINTS,
    )


def _find(scores: Sequence[TaskScore], task: str) -> TaskScore:
    for score in scores:
        if score.task == task:
            return score
    raise NvlmError(
        f"no held-out sample has the task {task!r}, found {', '.join(s.task for s in scores)}: "
        "start over with --fresh"
    )


def _agreement_check(agreement: Agreement) -> Check:
    found = (
        f"{agreement.num_equal} of {agreement.num_samples} samples, {agreement.num_tokens:,} "
        "answer tokens"
    )
    different = agreement.different_answers or agreement.different_prompts
    if different:
        found += f"; the first that differs is {'/'.join(different[0])}"
    return Check(
        name="Hugging Face export: same prompts and answers as Megatron, token by token",
        found=found,
        holds=agreement.is_complete,
    )


def _frozen_check(stage: str, comparison: Mapping) -> Check:
    changed = comparison["changed_though_frozen"]
    num_trained = len(comparison["trained"]) - len(comparison["unchanged_though_trained"])
    found = f"{len(comparison['frozen'])} tensors bit-identical"
    if changed:
        found = f"{len(changed)} of {len(comparison['frozen'])} tensors changed, as {changed[0]}"
    return Check(
        name=f"{stage} leaves {' and '.join(comparison['patterns'])} as they were",
        found=f"{found}; {num_trained} of {len(comparison['trained'])} others trained",
        holds=bool(comparison["frozen"]) and not changed and num_trained > 0,
    )


def _gallery(
    questions: Sequence[Question], outcomes: Sequence[StageOutcome], agreement: Agreement
) -> list[GalleryItem]:
    """The first samples of each task, whatever was answered."""
    answers = [
        (
            outcome.name,
            {(row["source"], row["sample_id"]): row["answer"] for row in outcome.answers},
        )
        for outcome in outcomes
    ]
    different = {*agreement.different_answers, *agreement.different_prompts}
    num_shown: dict[str, int] = {}
    items = []
    for question in questions:
        num_shown[question.task] = num_shown.get(question.task, 0) + 1
        if num_shown[question.task] > NUM_SHOWN_PER_TASK:
            continue
        identity = (question.source, question.sample_id)
        config = outcomes[-1].config
        files = read_image_files(question, config.data.max_image_megapixels)
        items.append(
            GalleryItem(
                sample_id=question.sample_id,
                source=question.source,
                task=question.task,
                earlier_turns=[
                    (turn["role"], turn["content"].replace(IMAGE_MARK, "").strip())
                    for turn in question.messages[:-1]
                ],
                question=question.text,
                truth=question.truth.answers,
                answers=[(name, by_sample[identity]) for name, by_sample in answers],
                export_agrees=identity not in different,
                pictures=[_picture(image, config) for image in files],
                num_tokens_per_tile=config.model.num_tokens_per_tile,
                image_token=config.model.image_token,
            )
        )
    return items


def _picture(image: bytes, config: RunConfig) -> Picture:
    visual = VisualLayout.from_config(config)
    size = read_image_size(image)
    grid = choose_grid(*size, visual.max_num_tiles, visual.image_size, visual.tiling)
    return Picture(
        data=image,
        columns=grid[0],
        rows=grid[1],
        tags=visual.tags(grid),
        has_thumbnail=visual.has_thumbnail(grid),
    )
