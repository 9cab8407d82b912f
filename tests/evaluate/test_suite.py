"""`nvlm evaluate --suite` from published files to scores."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from helpers import generate_case, small_model, spawn
from helpers.benchmark_data import write_realworldqa
from helpers.published_files import write_parquet

from nvlm.cli import run_app
from nvlm.errors import ConfigError, DataError
from nvlm.evaluate.suite.run import evaluate_suite
from nvlm.evaluate.suite.scores import score_all
from nvlm.evaluate.suite.settings import Settings, choose
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import initialize, shut_down

SHORT = Settings(max_new_tokens=3)


def make_checkpoint(target: Path, *overrides: str) -> Path:
    config = small_model.small_config("model.language.init_std=0.2", *overrides)
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()
    return target


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("suite") / "checkpoint")


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_and_scores_of_published_files(checkpoint, tmp_path, capsys):
    data = write_realworldqa(tmp_path / "data", num_rows=7, damaged=[2])
    evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, tmp_path / "out")
    folder = tmp_path / "out" / "realworldqa"
    rows = rows_of(folder / "predictions.jsonl")
    assert [row["key"] for row in rows] == ["0000", "0001", "0003", "0004", "0005", "0006"]
    for row in rows:
        assert row["messages"][0]["role"] == "system"
        assert row["messages"][1]["content"] == "<image>\n" + row["question"]
        assert row["score"] == float(row["answer"].lower() == row["truth"]["answer"].lower())
        assert 1 <= row["num_tokens"] <= 3
        assert row["finish_reason"] in ("stop", "length")
    (skipped,) = rows_of(folder / "skipped.jsonl")
    assert skipped["key"] == "0002" and skipped["skipped"]["reason"] == "image"
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["num_samples"] == 6 and scores["skipped"] == {"image": 1}
    assert scores["score"] == pytest.approx(100 * sum(row["score"] for row in rows) / 6)
    assert scores["paper_score"] == 69.7
    printed = capsys.readouterr().out
    assert "RealWorldQA" in printed and "69.70" in printed
    summary = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert summary["realworldqa"]["score"] == scores["score"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "predictions.jsonl", "scores.json", "settings.json", "skipped.jsonl",
    ]  # fmt: skip


def test_scores_follow_from_the_predictions_alone(checkpoint, tmp_path):
    data = write_realworldqa(tmp_path / "data", num_rows=4)
    out = tmp_path / "out"
    evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, out)
    path = out / "realworldqa" / "predictions.jsonl"
    rows = rows_of(path)
    for row in rows[:3]:
        row["answer"] = row["truth"]["answer"].lower() + ". "
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.rename(data, tmp_path / "elsewhere")
    (summary,) = score_all(out)
    assert [row["score"] for row in rows_of(path)][:3] == [1.0, 1.0, 1.0]
    assert summary["score"] >= 75


def test_the_same_again_asks_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    data, out = write_realworldqa(tmp_path / "data", num_rows=3), tmp_path / "out"
    asked = choose("realworldqa", [], SHORT)
    evaluate_suite(checkpoint, asked, data, out)
    before = (out / "realworldqa" / "predictions.jsonl").read_bytes()
    monkeypatch.setattr("nvlm.generate.engine.Engine.load", lambda self: pytest.fail("loaded"))
    evaluate_suite(checkpoint, asked, data, out)
    assert (out / "realworldqa" / "predictions.jsonl").read_bytes() == before
    assert "3 of 3 are answered already" in capsys.readouterr().out


def test_answers_of_something_else_are_not_gone_on_with(checkpoint, tmp_path):
    data, out = write_realworldqa(tmp_path / "data", num_rows=3), tmp_path / "out"
    evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, out)
    other = choose("realworldqa", [], Settings(max_new_tokens=4, chain_of_thought=True))
    with pytest.raises(DataError) as caught:
        evaluate_suite(checkpoint, other, data, out)
    fewer = Thrift(cache=0.5)
    with pytest.raises(DataError, match=r"settings\.keep_cache none, now 0\.5"):
        evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, out, thrift=fewer)
    assert "settings.max_new_tokens 3, now 4" in str(caught.value)
    assert "settings.chain_of_thought False, now True" in str(caught.value)
    another = make_checkpoint(tmp_path / "another", "train.seed=7")
    with pytest.raises(DataError, match=r"checkpoint_hash \w+…, now \w+…"):
        evaluate_suite(another, choose("realworldqa", [], SHORT), data, out)
    changed = write_realworldqa(tmp_path / "changed", num_rows=3, question="What?")
    with pytest.raises(DataError, match=r"data\.\*\*/test-"):
        evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), changed, out)
    (tmp_path / "full" / "realworldqa").mkdir(parents=True)
    (tmp_path / "full" / "realworldqa" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="does not hold a benchmark's answers"):
        evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, tmp_path / "full")


def test_missing_files_are_named_before_the_model_is_loaded(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("nvlm.generate.engine.Engine.load", lambda self: pytest.fail("loaded"))
    asked = choose("realworldqa", [], SHORT)
    with pytest.raises(DataError) as caught:
        evaluate_suite(checkpoint, asked, tmp_path / "data", tmp_path / "out")
    said = str(caught.value)
    assert f"{tmp_path}/data/realworldqa/**/test-*.parquet: the questions" in said
    assert "none found" in said and "https://huggingface.co/datasets/xai-org" in said
    with pytest.raises(DataError, match="has the files of none"):
        evaluate_suite(checkpoint, asked, tmp_path / "data", tmp_path / "out", skip_missing=True)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_written_by_one_evaluation_at_a_time(checkpoint, tmp_path):
    data, out = write_realworldqa(tmp_path / "data", num_rows=3), tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(DataError, match="another evaluation is writing"):
        evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, out)
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_too_many_skipped_end_it_with_an_error(checkpoint, tmp_path):
    data = write_realworldqa(tmp_path / "data", num_rows=24, damaged=range(1, 24))
    with pytest.raises(DataError, match=r"23 of 24 questions were skipped \(image 23\)"):
        evaluate_suite(checkpoint, choose("realworldqa", [], SHORT), data, tmp_path / "out")
    assert len(rows_of(tmp_path / "out" / "realworldqa" / "predictions.jsonl")) == 1


def write_chartqa(data: Path, num_rows: int = 10) -> Path:
    for name in ("test", "train"):
        rows = [
            {"image": n, "query": f"What of {name} {n}?", "label": [f"{n}"], "human_or_machine": 0}
            for n in range(num_rows)
        ]
        write_parquet(data / "chartqa" / f"{name}-00000-of-00001.parquet", rows)
    return data


def test_several_benchmarks_after_examples(checkpoint, tmp_path, monkeypatch, capsys):
    """As a user types it: one has no files, the other is asked after four examples."""
    data = write_chartqa(tmp_path / "data")
    words = f"nvlm evaluate {checkpoint} --suite textvqa,chartqa --data {data} --shots 4 --limit 3"
    words += f" --max-new-tokens 2 --chain-of-thought --skip-missing --out {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", words.split())
    assert run_app() == 0
    said = capsys.readouterr()
    assert "skipped: textvqa: " in said.err
    assert "3 answers without `Answer:`; the whole text was scored" in said.out
    rows = rows_of(tmp_path / "out" / "chartqa" / "predictions.jsonl")
    assert [len(row["images"]) for row in rows] == [5, 5, 5]
    assert all(len(row["messages"]) == 10 for row in rows)
    assert (tmp_path / "out" / "report.html").read_text().count("<article") == 3
    monkeypatch.setattr(sys, "argv", ["nvlm", "evaluate", "rescore", str(tmp_path / "out")])
    before = (tmp_path / "out" / "chartqa" / "scores.json").read_text()
    assert run_app() == 0
    assert (tmp_path / "out" / "chartqa" / "scores.json").read_text() == before
    predictions = tmp_path / "out" / "chartqa" / "predictions.jsonl"
    predictions.write_text("".join(predictions.read_text().splitlines(keepends=True)[1:]))
    for _ in range(2):
        with pytest.raises(DataError, match=r"chartqa: 1 question of those .* are not in"):
            run_app()
        assert (tmp_path / "out" / "chartqa" / "scores.json").read_text() == before
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--allow-missing"])
    for _ in range(2):  # what is missing stays so
        assert run_app() == 0
        scores = json.loads((tmp_path / "out" / "chartqa" / "scores.json").read_text())
        assert (scores["num_samples"], scores["num_missing"]) == (2, 1)


@pytest.mark.parametrize(
    "suite, splits, settings, message",
    [
        ("realworldqa,nothing", [], Settings(), "no benchmark 'nothing'; there are "),
        ("realworldqa", ["realworldqa"], Settings(), "expected NAME=SPLIT"),
        ("realworldqa", ["mmmu=val"], Settings(), "--suite does not name mmmu"),
        ("realworldqa", ["realworldqa=x"], Settings(), "realworldqa has the splits test"),
        ("realworldqa", [], Settings(shots=4), "realworldqa has no split to draw examples from"),
        ("realworldqa", [], Settings(shots_text_only=True), "goes with --shots 4"),
    ],
)
def test_what_cannot_be_asked_is_refused(suite, splits, settings, message):
    with pytest.raises(ConfigError) as caught:
        choose(suite, splits, settings)
    assert message in str(caught.value)


@pytest.mark.parallel
def test_a_killed_evaluation_goes_on(checkpoint, tmp_path):
    """Killed between two answers; then two replicas go on, and the answers are those of one run."""
    data = write_realworldqa(tmp_path / "data", num_rows=90, damaged=[3])
    whole, out = tmp_path / "whole", tmp_path / "out"
    asked = choose("realworldqa", [], Settings(max_new_tokens=12))
    evaluate_suite(checkpoint, asked, data, whole)
    command = ("evaluate", str(checkpoint), "--suite", "realworldqa", "--data", str(data),
               "--max-new-tokens", "12", "--out", str(out))  # fmt: skip
    log = tmp_path / "log"
    process = spawn.start_warm(1, "-m", "nvlm", *command, log=log)
    part = out / "realworldqa" / "parts" / "00000.jsonl"
    end = time.monotonic() + 120
    while not (part.is_file() and part.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None and time.monotonic() < end, log.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    num_before = len(part.read_bytes().splitlines())
    assert 3 <= num_before < 90
    with part.open("ab") as file:
        file.write(b'{"key": "00')  # as a kill within a line leaves it
    spawn.run_or_fail(2, *command, log=log)
    assert "are answered already" in log.read_text()
    for name in ("predictions.jsonl", "skipped.jsonl"):
        assert rows_of(out / "realworldqa" / name) == rows_of(whole / "realworldqa" / name)


@pytest.mark.parallel
def test_a_model_on_two_processes_answers_as_on_one(checkpoint, tmp_path):
    data = write_chartqa(write_realworldqa(tmp_path / "data", num_rows=5, damaged=[1]), 3)
    suite = "realworldqa,chartqa"
    evaluate_suite(checkpoint, choose(suite, [], SHORT), data, tmp_path / "one")
    command = ("evaluate", str(checkpoint), "--suite", suite, "--data", str(data),
               "--max-new-tokens", "3", "--out", f"{tmp_path}/two", "--tensor", "2")  # fmt: skip
    spawn.run_or_fail(2, *command, log=tmp_path / "log")
    for name in suite.split(","):
        one, two = (rows_of(tmp_path / n / name / "predictions.jsonl") for n in ("one", "two"))
        assert one == two and len(one) in (3, 4)
