"""The commands of docs/generate.md, run as they stand, on the tiny model."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from helpers.walkthrough import blocks_of, prepare, run
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.generate.asked_files import KEYS
from nvlm.generate.request import Sampling

PAGE = REPOSITORY / "docs" / "generate.md"


def blocks() -> list[tuple[str, str]]:
    return blocks_of(PAGE)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    environment = prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    outputs = []
    for language, text in blocks():
        if language == "bash":
            (command, *words) = shlex.split(text.replace("\\\n", ""))
            assert command == "nvlm"
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{words}\n{result.output}{result.exception}"
            outputs.append(result.stdout)
        elif language == "python":
            run([sys.executable, "-c", text], cwd=tmp_path, env=environment)
    _, one, _, of_folder, _ = outputs
    said = next(text for _, text in blocks() if text.startswith("asking"))
    for line, expected in zip(of_folder.splitlines(), said.splitlines(), strict=True):
        assert line.startswith(expected)
    rows_of_folder = rows(tmp_path / "runs" / "ask" / "folder.jsonl")
    rows_of_file = rows(tmp_path / "runs" / "ask" / "answers.jsonl")
    assert [row["id"] for row in rows_of_file] == ["cat", 2, 3]
    assert rows_of_file[1]["num_tokens"] <= 8
    # The same image and prompt: what the terminal showed.
    (answer,) = (row["answer"] for row in rows_of_folder if row["id"] == "chelsea.jpg")
    assert one.strip() == answer


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
