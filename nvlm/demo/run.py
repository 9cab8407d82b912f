"""`nvlm demo`: the whole path on one machine, from images to a Hugging Face export and a report.

Every step is a command that works alone; this file puts them in order, shows how far they are, and
says at the end what came out (results.py).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import nvlm
from nvlm.config import RunConfig, load_config
from nvlm.demo.report import Report, StepRecord, format_seconds, write_report
from nvlm.demo.results import StageOutcome, build_report
from nvlm.demo.steps import STATE_FILE, Look, Step, StepRunner, count_lines
from nvlm.errors import NvlmError
from nvlm.evaluate.question_files import write_questions
from nvlm.evaluate.questions import choose_questions, read_questions, with_data
from nvlm.printing import new_console

PRETRAIN_CONFIG = Path("configs/run/tiny/pretrain.yaml")
SFT_CONFIG = Path("configs/run/tiny/sft.yaml")
VISION_SOURCE = Path("assets/tiny/internvit")
LANGUAGE_SOURCE = Path("assets/tiny/qwen2")
SPLIT = "heldout"
NUM_PROCESSES = 2
NUM_STEPS = 9


@dataclass(frozen=True)
class _Paths:
    """Everything the demo writes; relative to the repository if it lies inside."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def questions(self) -> Path:
        return self.root / "questions"

    @property
    def imported(self) -> Path:
        return self.root / "imported"

    @property
    def pretrain(self) -> Path:
        return self.root / "pretrain"

    @property
    def sft(self) -> Path:
        return self.root / "sft"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def frozen(self) -> Path:
        return self.root / "frozen.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def answers(self, name: str) -> Path:
        return self.root / "answers" / f"{name}.jsonl"


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
    repository = _repository()
    root = Path(root).resolve()
    shown_root = root.relative_to(repository) if root.is_relative_to(repository) else root
    if fresh and root.exists():
        if not (root / STATE_FILE).is_file():
            raise NvlmError(
                f"{root}: has no {STATE_FILE}: not written by a demo, remove it yourself"
            )
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    # Commands, and the paths in configurations, are relative to the repository.
    os.chdir(repository)
    paths = _Paths(shown_root)

    pretrain_overrides, sft_overrides = (
        [
            f"run.dir={run_dir}",
            f"data.root={paths.data}",
            f"checkpoint.load={initial_weights}",
            f"parallel.tensor={NUM_PROCESSES}",
            *overrides,
        ]
        for run_dir, initial_weights in (
            (paths.pretrain, paths.imported),
            (paths.sft, paths.pretrain),
        )
    )
    pretrain = load_config(PRETRAIN_CONFIG, pretrain_overrides)
    sft = load_config(SFT_CONFIG, sft_overrides)
    _introduce(console, pretrain, sft, paths)

    runner = StepRunner(root, repository, _environment(root), console)
    records: list[StepRecord] = []

    def run(step: Step) -> None:
        seconds = runner.run(step, f"{len(records) + 1}/{NUM_STEPS}")
        log = paths.root / runner.log_path(step).relative_to(root)
        records.append(StepRecord(step.title, step.shown_command, str(log), seconds))

    run(_build_data(paths))
    found = read_questions(with_data(sft, paths.data, SPLIT))
    questions = choose_questions(found, limit_per_task).questions
    write_questions(questions, paths.questions, sft.data.max_image_megapixels)
    console.print(f"  {len(questions)} held-out questions will be asked after each stage")
    run(_import(paths))
    run(_train("pretrain", "Stage 1, pretrain: only the projector trains",
               PRETRAIN_CONFIG, pretrain_overrides, pretrain))  # fmt: skip
    run(_evaluate("pretrain", paths.pretrain, paths, limit_per_task, len(questions)))
    run(_train("sft", "Stage 2, SFT: projector and language model train, images in tagged tiles",
               SFT_CONFIG, sft_overrides, sft))  # fmt: skip
    run(_evaluate("sft", paths.sft, paths, limit_per_task, len(questions)))
    run(_compare_frozen(paths))
    run(_export(paths))
    run(_ask_export(paths, len(questions)))
    assert len(records) == NUM_STEPS

    report = build_report(
        questions=questions,
        outcomes=[
            StageOutcome("pretrain", pretrain, _read_lines(paths.pretrain / "metrics.jsonl"),
                         _read_lines(paths.answers("pretrain"))),
            StageOutcome("SFT", sft, _read_lines(paths.sft / "metrics.jsonl"),
                         _read_lines(paths.answers("sft"))),
        ],
        export_answers=_read_lines(paths.answers("export")),
        frozen=json.loads(paths.frozen.read_text()),
        steps=records,
    )  # fmt: skip
    write_report(report, paths.report)
    _print_results(console, report)
    console.print(f"\nReport: [bold]{paths.report}[/bold] (open it in a browser)")
    console.print(f"Export: {paths.export} (a Hugging Face folder)")
    console.print(f"This call took {format_seconds(time.perf_counter() - started)}.")
    failed = [check for check in report.checks if not check.holds]
    if failed:
        raise NvlmError(
            "the demo ran to its end, but does not keep what it promises: "
            + "; ".join(f"{check.name}: {check.found}" for check in failed)
        )


def _repository() -> Path:
    """The clone that nvlm was installed from: the demo needs its configurations and models."""
    repository = Path(nvlm.__file__).resolve().parent.parent
    for needed in (PRETRAIN_CONFIG, SFT_CONFIG, VISION_SOURCE, LANGUAGE_SOURCE):
        if not (repository / needed).exists():
            raise NvlmError(
                f"{repository / needed}: not found; the demo runs from a clone of the repository "
                "in which nvlm was installed by scripts/quickstart or `pip install -e .`"
            )
    return repository


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


def _introduce(console: Console, pretrain: RunConfig, sft: RunConfig, paths: _Paths) -> None:
    model = sft.model
    console.print("[bold]NVLM demo[/bold]")
    console.print(
        f"Trains a tiny NVLM-D with Megatron-core on this machine, on {NUM_PROCESSES} processes "
        f"with tensor parallelism {NUM_PROCESSES}: an InternViT of {model.vision.num_layers} "
        f"layers reads tiles of {model.vision.image_size} pixels, a projector turns each into "
        f"{model.vision.num_tokens_per_tile} tokens, a Qwen2 of {model.language.num_layers} layers "
        f"answers. {pretrain.train.steps} steps of pretraining, {sft.train.steps} of SFT; then it "
        "is exported to Hugging Face format and asked the same questions there."
    )
    console.print(f"Everything is written to {paths.root}. Run the same command again to go on.\n")


def _build_data(paths: _Paths) -> Step:
    return Step(
        name="build_data",
        title="Build WebDataset shards of digits, photographs, documents, charts and text",
        program="nvlm",
        arguments=["data", "build-demo", str(paths.data)],
        outputs=[paths.data],
    )


def _import(paths: _Paths) -> Step:
    return Step(
        name="import",
        title="Import the pretrained InternViT and Qwen2 from their Hugging Face folders",
        program="nvlm",
        arguments=[
            *("convert", "from-hf", "--vision", str(VISION_SOURCE)),
            *("--language", str(LANGUAGE_SOURCE), "--config", str(PRETRAIN_CONFIG)),
            str(paths.imported),
        ],
        outputs=[paths.imported],
    )


def _torchrun(arguments: Sequence[str]) -> list[str]:
    return ["--standalone", "--nproc-per-node", str(NUM_PROCESSES), "-m", *arguments]


def _train(name: str, title: str, path: Path, overrides: Sequence[str], config: RunConfig) -> Step:
    metrics = Path(config.run.dir) / "metrics.jsonl"
    num_steps = config.train.steps

    def look() -> Look:
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        if not lines:
            return 0, num_steps, "starting"
        try:
            last = json.loads(lines[-1])
        except json.JSONDecodeError:  # caught while it was being written
            return len(lines) - 1, num_steps, ""
        return last["step"], num_steps, f"loss {last['loss']:.3f}"

    return Step(
        name=f"train_{name}",
        title=title,
        program="torchrun",
        arguments=_torchrun(["nvlm", "train", str(path), *overrides]),
        outputs=[Path(config.run.dir)],
        resumes=True,
        look=look,
    )


def _evaluate(
    name: str, run_dir: Path, paths: _Paths, limit_per_task: int, num_questions: int
) -> Step:
    answers = paths.answers(name)
    return Step(
        name=f"evaluate_{name}",
        title="Ask the held-out questions",
        program="torchrun",
        arguments=_torchrun(
            [
                *("nvlm", "evaluate", str(run_dir), "--data-root", str(paths.data)),
                *("--split", SPLIT, "--limit-per-task", str(limit_per_task)),
                *("--out", str(answers)),
            ]
        ),
        outputs=[answers],
        look=lambda: _look_at_answers(
            answers, f".{answers.name}.*.part", num_questions, NUM_PROCESSES
        ),
    )


def _compare_frozen(paths: _Paths) -> Step:
    return Step(
        name="compare_frozen",
        title="Compare frozen parameters before and after each stage, bit by bit",
        program="python",
        arguments=[
            *("-m", "nvlm.demo.frozen", str(paths.frozen)),
            *(str(paths.imported), str(paths.pretrain), str(paths.sft)),
        ],
        outputs=[paths.frozen],
    )


def _export(paths: _Paths) -> Step:
    return Step(
        name="export",
        title="Export to a Hugging Face folder",
        program="nvlm",
        arguments=["convert", "to-hf", str(paths.sft), str(paths.export)],
        outputs=[paths.export],
    )


def _ask_export(paths: _Paths, num_questions: int) -> Step:
    answers = paths.answers("export")
    return Step(
        name="ask_export",
        title="Ask the export the same questions, with transformers alone",
        program="python",
        arguments=[
            *("-m", "nvlm.evaluate.hf_client"),
            *(str(paths.export), str(paths.questions), str(answers)),
        ],
        outputs=[answers],
        look=lambda: _look_at_answers(answers, f"{answers.name}.part", num_questions),
    )


def _look_at_answers(
    answers: Path, pattern: str, num_questions: int, num_processes: int = 1
) -> Look:
    """The first process notes its share in a file of name `pattern` until all are there."""
    if answers.is_file():
        return num_questions, num_questions, ""
    parts = list(answers.parent.glob(pattern)) if answers.parent.is_dir() else []
    num_done = min(count_lines(parts) * num_processes, num_questions)
    return num_done, num_questions, "" if parts else "starting"


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _print_results(console: Console, report: Report) -> None:
    names = [stage.name for stage in report.stages]
    table = Table(title="Held-out accuracy", title_justify="left", title_style="bold")
    table.add_column("task")
    table.add_column("samples", justify="right")
    table.add_column("majority answer", justify="right")
    for name in names:
        table.add_column(f"after {name}", justify="right")
    table.add_column("over majority", justify="right")
    for scores in zip(*(stage.scores for stage in report.stages)):
        first, last = scores[0], scores[-1]
        table.add_row(
            first.task,
            str(first.num_samples),
            f"{first.majority:.1%}",
            *(f"{score.accuracy:.1%}" for score in scores),
            f"{last.points_over_majority:+.0f} points",
        )
    console.print()
    console.print(table)
    for check in report.checks:
        mark = "[green]holds[/green]" if check.holds else "[red]fails[/red]"
        console.print(f"  {mark}  ", end="")
        console.print(f"{check.name}: {check.found}", markup=False)
