"""The commands of docs/generate.md, run as they stand, on the tiny model."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, prepare, run

from nvlm.generate.asked_files import KEYS
from nvlm.generate.request import Sampling

PAGE = REPOSITORY / "docs" / "generate.md"


def blocks() -> list[tuple[str, str]]:
    return blocks_of(PAGE)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parallel
def test_every_command_runs(tmp_path: Path):
    environment = {**prepare(tmp_path), "PYTHONWARNINGS": "ignore"}
    outputs = []
    for language, text in blocks():
        if language in ("bash", "python"):
            start = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
            outputs.append(run([*start, "-c", text], cwd=tmp_path, env=environment))
    folder = tmp_path / "runs" / "ask"
    said = next(text for _, text in blocks() if text.startswith("asking"))
    assert outputs[4].splitlines()[0] == said.splitlines()[0]
    assert outputs[4].splitlines()[1].startswith(said.splitlines()[1].rpartition(":")[0])
    assert outputs[4].splitlines()[2:] == said.splitlines()[2:]
    of_folder, of_file = rows(folder / "folder.jsonl"), rows(folder / "answers.jsonl")
    assert [row["id"] for row in of_file] == ["cat", 2, 3]
    assert of_file[1]["num_tokens"] <= 8
    # The same image and prompt: what the terminal showed.
    answer = next(row["answer"] for row in of_folder if row["id"] == "chelsea.jpg")
    assert outputs[2].strip() == answer


def test_blocks_are_all_of_a_known_kind():
    kinds = [language for language, _ in blocks()]
    assert set(kinds) == {"bash", "text", "python"}
    assert kinds.count("bash") == 5


def test_the_page_names_what_there_is():
    text = PAGE.read_text()
    for key in KEYS:
        assert f"`{key}`" in text
    options = re.findall(r"^\| `--[\w-]+` \| `(\w+)` \|", text, flags=re.MULTILINE)
    assert set(options) == {part.name for part in fields(Sampling)}
