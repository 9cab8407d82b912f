"""The demo's steps as commands: what each is called with, what it writes, how far it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.steps import Look, Step, count_lines
from nvlm.config import RunConfig, load_runs

CONFIG = Path("configs/run/tiny/stages.yaml")
# Stage -> what it is called here.
TITLES = {
    "pretrain": "Stage 1, pretrain: only the projector trains",
    "sft": "Stage 2, SFT: projector and language model train, images in tagged tiles",
}
VISION_SOURCE = Path("assets/tiny/internvit")
LANGUAGE_SOURCE = Path("assets/tiny/qwen2")
SPLIT = "heldout"
NUM_PROCESSES = 2
# Held-out losses and a few answers while the stages train.
VALIDATION = [
    "validation.every=60",
    f"validation.split={SPLIT}",
    "validation.samples=8",
    "validation.questions=4",
    "validation.max_new_tokens=8",
]


@dataclass(frozen=True)
class Paths:
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


@dataclass(frozen=True)
class Stage:
    """A training stage, its settings as loaded."""

    name: str  # in the file of stages, and in the names of files
    title: str
    overrides: list[str]
    config: RunConfig

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run.dir)


def load_stages(paths: Paths, overrides: Sequence[str]) -> tuple[Stage, Stage]:
    """Pretraining and SFT, with `overrides` for both."""
    settings = [
        f"run.dir={paths.root}",
        f"data.root={paths.data}",
        f"checkpoint.load={paths.imported}",
        f"parallel.tensor={NUM_PROCESSES}",
        *overrides,
    ]
    runs = load_runs(CONFIG, settings)
    first, second = (Stage(name, title, settings, runs[name]) for name, title in TITLES.items())
    return first, second


def build_data(paths: Paths) -> Step:
    return Step(
        name="build_data",
        title="Build WebDataset shards of digits, photographs, documents, charts and text",
        program="nvlm",
        arguments=["data", "build-demo", str(paths.data)],
        outputs=[paths.data],
    )


def import_models(paths: Paths) -> Step:
    return Step(
        name="import",
        title="Import the pretrained InternViT and Qwen2 from their Hugging Face folders",
        program="nvlm",
        arguments=[
            *("convert", "from-hf", "--vision", str(VISION_SOURCE)),
            *("--language", str(LANGUAGE_SOURCE), "--config", str(CONFIG)),
            str(paths.imported),
        ],
        outputs=[paths.imported],
    )


def _torchrun(arguments: Sequence[str]) -> list[str]:
    return ["--standalone", "--nproc-per-node", str(NUM_PROCESSES), "-m", *arguments]


def train(stage: Stage) -> Step:
    metrics = stage.run_dir / "metrics.jsonl"
    num_steps = stage.config.train.steps

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
        name=f"train_{stage.name}",
        title=stage.title,
        program="torchrun",
        arguments=_torchrun(
            ["nvlm", "train", str(CONFIG), "--stage", stage.name, *stage.overrides]
        ),
        outputs=[stage.run_dir],
        resumes=True,
        look=look,
    )


def evaluate(stage: Stage, paths: Paths, limit_per_task: int, num_questions: int) -> Step:
    answers = paths.answers(stage.name)
    return Step(
        name=f"evaluate_{stage.name}",
        title="Ask the held-out questions",
        program="torchrun",
        arguments=_torchrun(
            [
                *("nvlm", "evaluate", str(stage.run_dir), "--data-root", str(paths.data)),
                *("--split", SPLIT, "--limit-per-task", str(limit_per_task)),
                *("--out", str(answers)),
            ]
        ),
        outputs=[answers],
        look=lambda: _look_at_answers(
            answers, f".{answers.name}.*.part", num_questions, NUM_PROCESSES
        ),
    )


def compare_frozen(paths: Paths) -> Step:
    return Step(
        name="compare_frozen",
        title="Compare frozen parameters before and after each stage, bit by bit",
        program="python",
        arguments=[
            *("-m", "demo.frozen", str(paths.frozen)),
            *(str(paths.imported), str(paths.pretrain), str(paths.sft)),
        ],
        outputs=[paths.frozen],
    )


def export(paths: Paths) -> Step:
    return Step(
        name="export",
        title="Export to a Hugging Face folder",
        program="nvlm",
        arguments=["convert", "to-hf", str(paths.sft), str(paths.export)],
        outputs=[paths.export],
    )


def ask_export(paths: Paths, num_questions: int) -> Step:
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
