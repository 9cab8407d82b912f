"""`nvlm demo`: the whole path on one machine, from images to a Hugging Face export and a report.

Every step is a command that works alone (commands.py); this file puts them in order, and says at
the end what came out (results.py).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from demo import commands
from demo.commands import NUM_PROCESSES, SPLIT, Paths, Stage
from demo.report import Report, StepRecord, format_seconds, write_report
from demo.results import StageOutcome, build_report, print_accuracy
from demo.steps import STATE_FILE, Step, StepRunner
from nvlm.config import RunConfig
from nvlm.errors import NvlmError
from nvlm.evaluate.question_files import write_questions
from nvlm.evaluate.questions import Question, choose_questions, read_questions, with_data
from nvlm.files import read_json_lines
from nvlm.printing import new_console

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_STEPS = 9


def run_demo(
    root: Path = Path("runs/demo"),
    *,
    fresh: bool = False,
    limit_per_task: int = 40,
    overrides: Sequence[str] = (),
) -> None:
    """Build data, train both stages, evaluate, export, compare, and write `root/report.html`.

    Finished steps of an earlier call are kept, and an interrupted training goes on.

    Args:
        root: where everything is written.
        fresh: remove `root` first.
        limit_per_task: held-out samples evaluated per task.
        overrides: key=value settings for both training stages.

    Raises:
        NvlmError: a step failed, or something the demo promises does not hold.
    """
    started = time.perf_counter()
    console = new_console(soft_wrap=True, highlight=False)
    root = Path(root).resolve()
    _make_root(root, fresh)
    # Commands, and the paths in configurations, are relative to the repository.
    os.chdir(REPOSITORY)
    paths = Paths(root.relative_to(REPOSITORY) if root.is_relative_to(REPOSITORY) else root)
    stages = commands.load_stages(paths, overrides)
    pretrain, sft = stages
    _introduce(console, pretrain.config, sft.config, paths)
    runner = StepRunner(root, REPOSITORY, _environment(root), console)
    questions, records = _run_steps(runner, console, paths, stages, limit_per_task)
    report = _build_report(paths, stages, questions, records)
    write_report(report, paths.report)
    evaluations = [
        commands.evaluate(stage, paths, limit_per_task, len(questions)) for stage in stages
    ]
    print_accuracy(console, report.stages, evaluations)
    _print_checks(console, report)
    console.print(f"\nReport: [bold]{paths.report}[/bold] (open it in a browser)")
    console.print(f"Export: {paths.export} (a Hugging Face folder)")
    console.print(f"This call took {format_seconds(time.perf_counter() - started)}.")
    failed = [check for check in report.checks if not check.holds]
    if failed:
        raise NvlmError(
            "the demo ran to its end, but does not keep what it promises: "
            + "; ".join(f"{check.name}: {check.found}" for check in failed)
        )


def _make_root(root: Path, fresh: bool) -> None:
    """Make the folder; `fresh`: remove what an earlier demo wrote there."""
    if fresh and root.exists():
        if not (root / STATE_FILE).is_file():
            raise NvlmError(
                f"{root}: has no {STATE_FILE}: not written by a demo, remove it yourself"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)


def _run_steps(
    runner: StepRunner,
    console: Console,
    paths: Paths,
    stages: tuple[Stage, Stage],
    limit_per_task: int,
) -> tuple[list[Question], list[StepRecord]]:
    """Run what is not finished; returns the questions that were asked, and what was run."""
    records: list[StepRecord] = []

    def run(step: Step) -> None:
        seconds = runner.run(step, f"{len(records) + 1}/{NUM_STEPS}")
        log = paths.root / runner.log_path(step).relative_to(runner.root)
        records.append(StepRecord(step.title, step.shown_command, str(log), seconds))

    run(commands.build_data(paths))
    sft = stages[-1].config
    found = read_questions(with_data(sft, paths.data, SPLIT))
    questions = choose_questions(found, limit_per_task).questions
    write_questions(questions, paths.questions, sft.data.max_image_megapixels)
    console.print(f"  {len(questions)} held-out questions will be asked after each stage")
    run(commands.import_models(paths))
    for stage in stages:
        run(commands.train(stage))
        run(commands.evaluate(stage, paths, limit_per_task, len(questions)))
    run(commands.compare_frozen(paths))
    run(commands.export(paths))
    run(commands.ask_export(paths, len(questions)))
    assert len(records) == NUM_STEPS
    return questions, records


def _build_report(
    paths: Paths,
    stages: tuple[Stage, Stage],
    questions: Sequence[Question],
    records: Sequence[StepRecord],
) -> Report:
    return build_report(
        questions=questions,
        outcomes=[
            StageOutcome(
                name,
                stage.config,
                _read_lines(stage.run_dir / "metrics.jsonl"),
                _read_lines(paths.answers(stage.name)),
            )
            for name, stage in zip(("pretrain", "SFT"), stages)
        ],
        export_answers=_read_lines(paths.answers("export")),
        frozen=json.loads(paths.frozen.read_text()),
        steps=records,
    )


def _environment(root: Path) -> dict[str, str]:
    """For the steps' commands: unbuffered logs, no network, threads shared among processes."""
    return {
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // NUM_PROCESSES)),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        # transformers copies an export's modelling files here before it imports them.
        "HF_MODULES_CACHE": str(root / "hf_modules"),
    }


def _introduce(console: Console, pretrain: RunConfig, sft: RunConfig, paths: Paths) -> None:
    model = sft.model
    console.print("[bold]NVLM demo[/bold]")
    console.print(
        f"Trains a tiny NVLM-D with Megatron-core on this machine, on {NUM_PROCESSES} processes "
        f"with tensor parallelism {NUM_PROCESSES}: an InternViT of {model.vision.num_layers} "
        f"layers reads tiles of {model.vision.image_size} pixels, a projector turns each into "
        f"{model.num_tokens_per_tile} tokens, a Qwen2 of {model.language.num_layers} layers "
        f"answers. {pretrain.train.steps} steps of pretraining, {sft.train.steps} of SFT; then it "
        "is exported to Hugging Face format and asked the same questions there."
    )
    console.print(
        f"Everything is written to {paths.root}. Run the same command again to continue.\n"
    )


def _read_lines(path: Path) -> list[dict]:
    return list(read_json_lines(path))


def _print_checks(console: Console, report: Report) -> None:
    console.print()
    for check in report.checks:
        mark = "[green]holds[/green]" if check.holds else "[red]fails[/red]"
        console.print(f"  {mark}  ", end="")
        console.print(f"{check.name}: {check.found}", markup=False)
