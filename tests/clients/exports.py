"""What clients are tried on: exports, questions, and Megatron's answers to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from helpers import export_runs
from helpers.paths import REPOSITORY
from PIL import Image, ImageDraw

TRAINING_STEPS = 30
MAX_NEW_TOKENS = 16
MOST_TILES = 6


@dataclass(frozen=True)
class Tried:
    """
    Attributes:
        checkpoint, export: the same model, Megatron's and for Hugging Face.
        language: the folder of the language model that it was made of.
        questions: by name: messages, image files and the most tiles of each.
        answers: by name, Megatron-core's greedy ones: prompt_ids, answer_ids, text.
    """

    checkpoint: Path
    export: Path
    language: Path
    questions: dict[str, dict[str, Any]]
    answers: dict[str, dict[str, Any]]

    def write_questions(self, file: Path) -> Path:
        """The questions as JSON, for a program in another environment."""
        file.write_text(json.dumps(self.questions))
        return file


class Exports:
    """Made when first asked for, in a folder that the caller removes."""

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def tiny(self) -> Tried:
        """The tiny model after a few steps of training; its tiles have 112 pixels."""
        folder = self.folder / "tiny"
        folder.mkdir()
        language = REPOSITORY / "assets/tiny/qwen2"
        configuration = REPOSITORY / "configs/run/tiny/sft.yaml"
        _nvlm("data", "build-demo", folder / "data")
        _nvlm(
            *("convert", "from-hf", "--vision", REPOSITORY / "assets/tiny/internvit"),
            *("--language", language, "--config", configuration, folder / "initial"),
        )
        _nvlm(
            *("train", configuration, f"data.root={folder / 'data'}", f"run.dir={folder / 'run'}"),
            f"checkpoint.load={folder / 'initial'}",
            *(f"train.steps={TRAINING_STEPS}", "log.tensorboard=false"),
        )
        _nvlm("convert", "to-hf", folder / "run", folder / "export", "--dtype", "fp32")
        return _tried(folder / "run", folder / "export", language, folder)

    @cached_property
    def served(self) -> Tried:
        """A small random model that every server opens: tiles of 448 pixels, seven zero heads."""
        folder = self.folder / "served"
        folder.mkdir()
        made = export_runs.make_export(folder, export_runs.SERVED)
        return _tried(made.checkpoint, made.export, folder / "language", folder)


def _nvlm(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "nvlm", *map(str, arguments)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _tried(checkpoint: Path, export: Path, language: Path, folder: Path) -> Tried:
    questions = _questions(folder)
    answers = _megatron_answers(checkpoint, questions)
    assert len({row["text"] for row in answers.values()}) > 1, "one answer to all: nothing compared"
    return Tried(checkpoint, export, language, questions, answers)


def _questions(folder: Path) -> dict[str, dict[str, Any]]:
    """One tile, many tiles, two images, images over turns, and text alone."""
    one = _draw(folder / "one.png", 100, 100, "7")
    wide = _draw(folder / "wide.png", 1400, 900, "42")
    high = _draw(folder / "high.png", 500, 1100, "305")

    def asked(text: str, *images: Path, earlier: tuple[str, ...] = ()) -> dict[str, Any]:
        roles = ["user", "assistant"] * len(earlier)
        turns = [{"role": role, "content": turn} for role, turn in zip(roles, earlier)]
        return {
            "messages": [*turns, {"role": "user", "content": text}],
            "images": [str(image) for image in images],
            "max_num_tiles": MOST_TILES,
        }

    return {
        "one tile": asked("<image>\nWhich digit is it?", one),
        "many tiles": asked("<image>\nRead the number.", wide),
        "many tiles, high": asked("<image>\nWhat is written here?", high),
        "two images": asked("<image>\n<image>\nWhat differs?", one, high),
        "two turns": asked("<image>\nAnd here?", wide, one, earlier=("<image>\nWhat is it?", "42")),
        "text only": asked("What is 2 + 2?"),
        "longer text": asked("Write three sentences about a house near a river, and one of a dog."),
    }


def _draw(file: Path, width: int, height: int, text: str) -> Path:
    """A picture with gradients, shapes and large digits, so that no two tiles are alike."""
    red = Image.linear_gradient("L").resize((width, height))
    green = Image.radial_gradient("L").resize((width, height))
    image = Image.merge("RGB", [red, green, red.transpose(Image.Transpose.ROTATE_180)])
    draw = ImageDraw.Draw(image)
    draw.rectangle([width // 8, height // 8, width // 3, height // 3], fill="navy")
    draw.text((width // 3, height // 3), text, fill="white", font_size=min(width, height) // 2)
    image.save(file)
    return file


def megatron_on_texts(tried: Tried, texts: dict[str, list], folder: Path) -> dict[str, list]:
    """What `megatron_texts.py` says of each text."""
    return _in_megatron("megatron_texts.py", [tried.checkpoint, tried.export], texts, folder)


def _megatron_answers(checkpoint: Path, questions: dict[str, dict]) -> dict[str, dict[str, Any]]:
    more = [checkpoint, str(MAX_NEW_TOKENS)]
    return _in_megatron("megatron_answers.py", more, questions, checkpoint.parent)


def _in_megatron(program: str, more: list, asked: Any, folder: Path) -> Any:
    """What a program here answers, in a process of its own: it holds process groups."""
    path = Path(__file__).with_name(program)
    questions, out = folder / "asked.json", folder / "answered.json"
    questions.write_text(json.dumps(asked))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-W", "ignore", path, *more, questions, out]
    subprocess.run(command, env=environment, check=True)
    return json.loads(out.read_text())
