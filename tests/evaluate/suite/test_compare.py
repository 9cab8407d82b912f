"""Two folders of answers compared: pairs, refusals, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.benchmark_answers import write_answers
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.errors import DataError
from nvlm.evaluate.suite.compare import compare

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


def test_pairs_are_compared(tmp_path):
    first = write_answers(tmp_path / "a", [1] * 30 + [0] * 20)
    second = write_answers(tmp_path / "b", [1] * 25 + [0] * 5 + [1] * 14 + [0] * 6)
    ((found,), only) = compare(first, second)
    assert only == []
    assert found.numbers == (60.0, 78.0) and found.difference == 18.0
    assert found.p_value == pytest.approx(stats.binomtest(5, 19).pvalue)
    assert found.interval is not None and found.interval[0] < 18 < found.interval[1]
    assert [len(flips) for flips in found.better] == [5, 14]
    assert not found.is_same_checkpoint
    printed = CliRunner().invoke(app, ["evaluate", "compare", str(first), str(second)]).output
    assert "+18.00" in printed and "McNemar" in printed
    assert "5 answers are better in A" in printed and "14 answers are better in B" in printed
    assert "0025" in printed and "\x1b" not in printed


def test_questions_that_one_skipped_are_left_out(tmp_path):
    first = write_answers(tmp_path / "a", [1, 0, 1, 0])
    second = write_answers(tmp_path / "b", [1, 1, 1, 1], skipped=[3])
    ((found,), _) = compare(first, second)
    assert (found.num_pairs, found.num_unpaired) == (3, 1)
    assert found.numbers == pytest.approx((200 / 3, 100))


def test_the_same_answers_do_not_differ(tmp_path):
    first = write_answers(tmp_path / "a", [1, 0, 1])
    ((found,), _) = compare(first, first)
    assert (found.difference, found.interval, found.p_value) == (0, (0, 0), 1)
    assert found.is_same_checkpoint


def change(path: Path, **values) -> None:
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | values))


def test_what_was_asked_otherwise_is_refused(tmp_path):
    first = write_answers(tmp_path / "a", [1, 0, 1])
    second = write_answers(tmp_path / "b", [1, 1, 1])
    settings = second / "realworldqa" / "settings.json"
    about = json.loads(settings.read_text())
    change(settings, settings=about["settings"] | {"shots": 4})
    with pytest.raises(DataError, match=r"not asked the same: settings\.shots 0, now 4"):
        compare(first, second)
    settings.write_text(json.dumps(about))
    answers = second / "realworldqa" / "predictions.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    with pytest.raises(DataError, match="1 questions are in one alone, such as 0002"):
        compare(first, second)
    rows[1]["images"] = ["another"]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="realworldqa/0001 were not asked the same: images"):
        compare(first, second)
    answers.unlink()
    with pytest.raises(DataError, match="the evaluation is not done"):
        compare(first, second)
