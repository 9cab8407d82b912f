"""Two folders of answers compared: pairs, refusals, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.benchmark_answers import write_answers, write_rows
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


def test_shares_of_a_point_are_compared_by_their_signs(tmp_path):
    """TextVQA: an answer that two of ten people gave is worth less than one of four."""
    people = ["cat"] * 4 + ["dog"] * 2 + ["fox", "elk", "hen", "cow"]
    answers = {"a": ["dog", "cat", "none"] * 10, "b": ["cat", "cat", "dog"] * 10}
    first, second = (
        write_rows(
            tmp_path / name,
            "textvqa",
            [{"truth": {"answers": people}, "answer": text} for text in texts],
        )
        for name, texts in answers.items()
    )
    ((found,), _) = compare(first, second)
    assert found.test == "sign flips" and found.p_value < 0.001
    assert [len(flips) for flips in found.better] == [0, 20]
    assert 0 < found.better[1][0].scores[0] < 1


def test_points_that_are_no_mean_are_summed_up_anew(tmp_path):
    truth = {"answers": ["cat"], "is_formula": False}
    first, second = (
        write_rows(
            tmp_path / name,
            "ocrbench",
            [
                {"truth": truth, "answer": "a cat" if n < right else "a dog", "group": group}
                for n in range(20)
                for group in ("Scene Text-centric VQA", "Doc-oriented VQA")
            ],
        )
        for name, right in (("a", 8), ("b", 12))
    )
    scores = json.loads((first / "ocrbench" / "scores.json").read_text())
    assert scores["score"] == 400
    # 1,000 points x the standard error of a share of 0.4 of 40.
    assert scores["standard_error"] == pytest.approx(1000 * (0.4 * 0.6 / 40) ** 0.5, rel=0.2)
    assert scores["groups"]["Doc-oriented VQA"] == {"score": 40, "num_samples": 20}
    ((found,), _) = compare(first, second)
    assert found.difference == 200
    assert found.interval is not None and found.interval[0] < 200 < found.interval[1]
    assert found.test == "McNemar, exact"


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
