"""A checkpoint evaluated by Megatron on two processes, and by transformers from its export."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import spawn
from helpers.paths import REPOSITORY

from demo.build_data import SOURCES
from nvlm.checkpoint_io import read_config
from nvlm.evaluate.agreement import compare_answers
from nvlm.evaluate.question_files import write_questions
from nvlm.evaluate.questions import choose_questions, read_questions, with_data
from nvlm.evaluate.score import score_answer

MAX_NEW_TOKENS = 32


def _run_client(*arguments: str | Path) -> None:
    """As a user of the export: started from nothing, with the hub out of reach."""
    environment = {**spawn.environment(), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "nvlm.evaluate.hf_client", *arguments]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, timeout=300)


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    program = REPOSITORY / "tests" / "helpers" / "random_checkpoints.py"
    spawn.run_program_or_fail(1, program, folder, log=folder / "log")
    return folder


@pytest.mark.parallel
def test_export_answers_as_megatron_does(checkpoints, demo_data, tmp_path):
    """Random weights say nothing sensible, but both programs must say the same, token by token."""
    ours = tmp_path / "ours.jsonl"
    options = ("--data-root", demo_data, "--limit-per-task", "2", "--out", ours)
    evaluate = ("-m", "nvlm", "evaluate", checkpoints / "trained", *options)
    printed = spawn.run_program_or_fail(2, *evaluate, log=checkpoints / "evaluate.log")
    assert re.search(r"^ sheets +2 +0 +0\.0%", printed, flags=re.MULTILINE), printed

    config = read_config(checkpoints / "trained")
    found = read_questions(with_data(config, demo_data, "heldout"))
    questions = choose_questions(found, 2).questions
    rows = _rows(ours)
    assert [row["sample_id"] for row in rows] == [q.sample_id for q in questions]
    assert {row["task"] for row in rows} == set(SOURCES)
    for row, question in zip(rows, questions):
        assert (row["truth"], row["question"]) == (question.truth.answers, question.text)
        assert row["correct"] == (score_answer(row["answer"], question.truth) == 1)
        assert 1 <= len(row["answer_token_ids"]) <= MAX_NEW_TOKENS
    assert list(tmp_path.iterdir()) == [ours]

    to_hf = ("convert", "to-hf", str(checkpoints / "trained"), str(tmp_path / "export"))
    spawn.run_or_fail(1, *to_hf, log=tmp_path / "log")
    write_questions(questions, tmp_path / "questions", config.data.max_image_megapixels)
    theirs = tmp_path / "theirs.jsonl"
    files = (tmp_path / "export", tmp_path / "questions", theirs)
    _run_client(*files, "--max-new-tokens", str(MAX_NEW_TOKENS))
    agreement = compare_answers(rows, _rows(theirs))
    assert agreement.is_complete, agreement
    assert [row["answer"] for row in rows] == [row["answer"] for row in _rows(theirs)]


def test_frozen_parameters_are_compared_bit_by_bit(checkpoints, tmp_path):
    paths = [checkpoints / name for name in ("first", "trained", "thawed")]
    program = ("-m", "demo.frozen", tmp_path / "frozen.json", *paths)
    spawn.run_program_or_fail(1, *program, log=tmp_path / "log")
    trained, thawed = json.loads((tmp_path / "frozen.json").read_text())
    assert trained["patterns"] == ["vision_model.*"]
    assert len(trained["frozen"]) > 10 and len(trained["trained"]) > 10
    assert trained["changed_though_frozen"] == trained["unchanged_though_trained"] == []
    # One value by one unit in the last place.
    assert thawed["changed_though_frozen"] == ["vision_model.embeddings.class_embedding"]
    assert thawed["unchanged_though_trained"] == thawed["trained"]
