"""A checkpoint evaluated by Megatron on two processes, and by transformers from its export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nvlm.demo.build_data import SOURCES
from nvlm.evaluate.agreement import compare_answers
from nvlm.evaluate.heldout import read_questions, write_questions
from nvlm.evaluate.score import is_correct

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_NEW_TOKENS = 32


def _run(*arguments: str | Path) -> str:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=500
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    _run(Path(__file__).with_name("random_checkpoints.py"), folder)
    return folder


@pytest.mark.parallel
def test_export_answers_as_megatron_does(checkpoints, demo_data, tmp_path):
    """Random weights say nothing sensible, but both programs must say the same, token by token."""
    ours = tmp_path / "ours.jsonl"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    options = ("--data-root", demo_data, "--limit-per-task", "2", "--out", ours)
    printed = _run(*torchrun, "-m", "nvlm", "evaluate", checkpoints / "trained", *options)
    assert "sheets: 0.0% of 2 right" in printed

    questions = read_questions(demo_data, "heldout", 2)
    rows = _rows(ours)
    assert [row["sample_id"] for row in rows] == [q.sample_id for q in questions]
    assert {row["task"] for row in rows} == set(SOURCES)
    for row, question in zip(rows, questions):
        assert (row["truth"], row["question"]) == (question.truth, question.text)
        assert row["correct"] == is_correct(row["answer"], row["truth"])
        assert 1 <= len(row["answer_token_ids"]) <= MAX_NEW_TOKENS
    assert list(tmp_path.glob("*.part*")) == []

    _run("-m", "nvlm", "convert", "to-hf", checkpoints / "trained", tmp_path / "export")
    write_questions(questions, tmp_path / "questions")
    theirs = tmp_path / "theirs.jsonl"
    client = ("-m", "nvlm.evaluate.hf_client", tmp_path / "export", tmp_path / "questions", theirs)
    _run(*client, "--max-new-tokens", str(MAX_NEW_TOKENS))
    agreement = compare_answers(rows, _rows(theirs))
    assert agreement.is_complete, agreement
    assert [row["answer"] for row in rows] == [row["answer"] for row in _rows(theirs)]


def test_frozen_parameters_are_compared_bit_by_bit(checkpoints, tmp_path):
    paths = [checkpoints / name for name in ("first", "trained", "thawed")]
    _run("-m", "nvlm.demo.frozen", tmp_path / "frozen.json", *paths)
    trained, thawed = json.loads((tmp_path / "frozen.json").read_text())
    assert trained["patterns"] == ["vision_model.*"]
    assert len(trained["frozen"]) > 10 and len(trained["trained"]) > 10
    assert trained["changed_though_frozen"] == trained["unchanged_though_trained"] == []
    # One value by one unit in the last place.
    assert thawed["changed_though_frozen"] == ["vision_model.embeddings.class_embedding"]
    assert thawed["unchanged_though_trained"] == thawed["trained"]
