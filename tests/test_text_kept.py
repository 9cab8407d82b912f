"""`scripts/text_kept` compares two runs of lm-evaluation-harness question by question."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from helpers.paths import REPOSITORY

# As lm_eval 0.4.13 writes them, without the fields that are not read.
TASK = "samples_gsm8k_2026-11-29T20-26-34.122771.jsonl"


def write(folder: Path, values: list[float], file: str = TASK, filters=("strict",)) -> Path:
    rows = [
        {"doc_id": number, "filter": name, "metrics": ["exact_match"], "exact_match": value}
        for name in filters
        for number, value in enumerate(values)
    ]
    path = folder / "__models__export" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def call(*arguments: Path | str) -> tuple[int, str, str]:
    command = [sys.executable, REPOSITORY / "scripts/text_kept", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_the_error_is_that_of_the_difference(tmp_path: Path):
    export = write(tmp_path / "export", [1, 1, 0, 1, 0, 1, 1, 1])
    backbone = write(tmp_path / "backbone", [1, 0, 0, 1, 0, 1, 1, 1])
    code, table, _ = call("--from", export, backbone)
    assert code == 0
    # One of eight differences is 1: mean 1/8, variance 1/8 in the sample.
    error = math.sqrt(1 / 8) / math.sqrt(8)
    assert table.splitlines()[-1] == (
        f"| gsm8k | exact_match, strict | 8 | 0.6250 | 0.7500 | +0.1250 | {error:.4f} |"
    )


def test_filters_and_tasks_are_rows(tmp_path: Path):
    for name in ("export", "backbone"):
        write(tmp_path / name, [1, 0], filters=("strict", "flexible"))
        write(tmp_path / name, [0, 0, 1], "samples_mmlu_anatomy_2026-11-29T20-26-34.1.jsonl")
    code, table, _ = call("--from", tmp_path / "export", tmp_path / "backbone")
    assert code == 0
    names = [line.split(" | ")[:3] for line in table.splitlines()[2:]]
    assert names == [
        ["| gsm8k", "exact_match, flexible", "2"],
        ["| gsm8k", "exact_match, strict", "2"],
        ["| mmlu_anatomy", "exact_match, strict", "3"],
    ]
    assert table.count("+0.0000 | 0.0000") == 3


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    export = write(tmp_path / "export", [1, 1, 0])
    shorter = write(tmp_path / "shorter", [1, 1])
    twice = write(write(tmp_path / "twice", [1]), [1], TASK.replace("20-26", "21-00"))
    broken = write(tmp_path / "broken", [1])
    (broken / "__models__export" / TASK).write_text('{"doc_id": 1}\n')
    (empty := tmp_path / "empty").mkdir()
    for other, says in {
        shorter: "1 questions were asked of one only, such as document 2",
        twice: "several runs of gsm8k: give the folder of one",
        broken: f"{TASK}:1 is no sample of lm_eval: 'filter'",
        empty: "no samples_*.jsonl: run lm_eval with --log_samples",
        tmp_path / "nowhere": "is no folder",
    }.items():
        code, out, error = call("--from", export, other)
        assert code == 1 and not out
        assert says in error and len(error.splitlines()) == 1


def test_nothing_is_run_over_earlier_answers(tmp_path: Path):
    export = write(tmp_path / "export", [1])
    code, _, error = call(export, export, "--tasks", "mmlu")
    assert code == 2 and "--out is missing" in error
    code, _, error = call(export, export, "--out", export, "--tasks", "mmlu")
    assert code == 1 and ("exists: name another" in error or "has no lm_eval" in error)
