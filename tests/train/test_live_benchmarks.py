"""Benchmarks during training: answers and scores are those of `nvlm evaluate --suite`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers import spawn
from helpers.benchmark_data import write_realworldqa
from helpers.small_runs import settings_of, stage_config

from nvlm.checkpoint_files import read_progress
from nvlm.config import load_config
from nvlm.errors import ConfigError, DataError
from nvlm.evaluate.suite.run import evaluate_suite
from nvlm.evaluate.suite.settings import Settings, choose
from nvlm.train.preflight import check_before_start

NAME = "realworldqa"
LIMIT = 4
# Weights large enough that answers differ, and that stay as they are; short sequences, for speed.
SMALL = [
    "model.language.init_std=0.2",
    "train.optimizer.lr=1e-30",
    "train.optimizer.min_lr=0",
    "stage.sequence_length=256",
    "stage.max_num_tiles=2",
]


def wanted(data: Path) -> list[str]:
    return [
        "validation.every=1",
        "validation.samples=2",
        "validation.sources=[digits]",
        f"validation.benchmarks=[{NAME}]",
        f"validation.benchmarks_dir={data}",
        f"validation.benchmark_questions={LIMIT}",
        f"checkpoint.best=benchmark/{NAME}",
        "checkpoint.best_is=higher",
    ]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def put_in_answers(data: Path, answers: dict[str, str]) -> None:
    """Make some of the answers right, so that scores say something."""
    number = 0
    for path in sorted((data / NAME / "data").iterdir()):
        table = pq.read_table(path)
        truths = table["answer"].to_pylist()
        for at in range(len(truths)):
            truths[at] = answers.get(f"{number:04d}", truths[at])
            number += 1
        index = table.schema.get_field_index("answer")
        table = table.set_column(index, table.schema.field("answer"), [truths])
        pq.write_table(table, path, row_group_size=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_realworldqa(tmp_path_factory.mktemp("benchmarks"), num_rows=5, damaged=[3])


@pytest.fixture(scope="module")
def run(demo_data: Path, data: Path, tmp_path_factory) -> Path:
    """Two steps, asked after each."""
    from nvlm.train.fit import train

    folder = tmp_path_factory.mktemp("live")
    first = stage_config("sft", demo_data, folder / "first", "random", *SMALL, "train.steps=1")
    train(first)
    evaluate_suite(Path(first.run.dir), choose(NAME, [], Settings()), data, folder / "answers")
    said = rows(folder / "answers" / NAME / "predictions.jsonl")
    assert len({row["answer"] for row in said}) >= 3, "a test of answers needs some that vary"
    put_in_answers(data, {row["key"]: row["answer"] for row in said[:3] if row["answer"]})
    load = str(Path(first.run.dir) / "checkpoints" / "latest")
    more = [*SMALL, *wanted(data), "train.steps=2"]
    config = stage_config("sft", demo_data, folder / "second", load, *more)
    train(config)
    return Path(config.run.dir)


def test_answers_and_scores_are_those_of_an_evaluation(run: Path, data: Path, tmp_path: Path):
    checkpoint = run / "checkpoints" / "step_00000002"
    evaluate_suite(checkpoint, choose(NAME, [], Settings(limit=LIMIT)), data, tmp_path / "out")
    truth = rows(tmp_path / "out" / NAME / "predictions.jsonl")
    found = [row for row in rows(run / "benchmark_answers.jsonl") if row["step"] == 2]
    answered = [row for row in found if "answer" in row]
    keys = ("key", "question", "answer", "num_tokens", "score")
    assert [[row[key] for key in keys] for row in answered] == [
        [row[key] for key in keys] for row in truth
    ]
    skipped = [row for row in found if "skipped" in row]
    assert [(row["key"], row["skipped"]) for row in skipped] == [
        (row["key"], row["skipped"]) for row in rows(tmp_path / "out" / NAME / "skipped.jsonl")
    ]
    scores = json.loads((tmp_path / "out" / NAME / "scores.json").read_text())
    assert 0 < scores["score"] < 100
    measured = [line for line in rows(run / "between_steps.jsonl") if f"benchmark/{NAME}" in line]
    assert [line["step"] for line in measured] == [1, 2]
    assert {line[f"benchmark/{NAME}"] for line in measured} == {scores["score"]}
    assert all(line.get(f"benchmark/{NAME}/skipped", 0) == len(skipped) for line in measured)


def test_the_best_checkpoint_is_that_of_the_benchmark(run: Path):
    """The score stays the same, so that the first one is the best."""
    best = (run / "checkpoints" / "best").resolve()
    assert best.name == "step_00000001"
    measured = rows(run / "between_steps.jsonl")[0]
    assert read_progress(best)["measured"] == {f"benchmark/{NAME}": measured[f"benchmark/{NAME}"]}


def test_the_report_shows_the_scores(run: Path, tmp_path: Path):
    from nvlm.views.report.page import read_runs, write_report

    page = write_report(read_runs([run]), tmp_path / "report.html")
    assert f"Benchmark {NAME}" in page.read_text()


@pytest.mark.parallel
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(["parallel.tensor=2", "parallel.sequence=true"], id="tensor2"),
        pytest.param([], id="data2", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_layouts_answer_alike(layout, run: Path, demo_data: Path, data: Path, tmp_path: Path):
    load = f"checkpoint.load={run / 'checkpoints' / 'step_00000002'}"
    arguments = [
        *settings_of(demo_data, tmp_path), f"run.dir={tmp_path / 'run'}", load,
        *SMALL, *wanted(data), "train.steps=1", *layout,
    ]  # fmt: skip
    config = "configs/run/tiny/sft.yaml"
    spawn.run_or_fail(2, "train", config, *arguments, log=tmp_path / "log")
    found = rows(tmp_path / "run" / "benchmark_answers.jsonl")
    truth = [row for row in rows(run / "benchmark_answers.jsonl") if row["step"] == 1]
    assert found == truth
    numbers = rows(tmp_path / "run" / "between_steps.jsonl")[0]
    expected = rows(run / "between_steps.jsonl")[0]
    assert numbers[f"benchmark/{NAME}"] == expected[f"benchmark/{NAME}"]


def test_what_is_missing_is_said_before_training(demo_data: Path, data: Path, tmp_path: Path):
    def config(*more: str):
        return stage_config("sft", demo_data, tmp_path, "random", *wanted(data), *more)

    check_before_start(config())
    other = ["checkpoint.best=null", "checkpoint.best_is=null"]
    with pytest.raises(ConfigError, match=r"validation\.benchmarks: no benchmark 'chartq'; there"):
        check_before_start(config("validation.benchmarks=[chartq]", *other))
    with pytest.raises(
        DataError, match=r"chartqa: .*chartqa: no such folder; expected .*come from"
    ):
        check_before_start(config("validation.benchmarks=[chartqa]", *other))
    (tmp_path / "empty" / NAME).mkdir(parents=True)
    empty = config(f"validation.benchmarks_dir={tmp_path / 'empty'}")
    check_before_start(empty)
    from nvlm.train.fit import train

    with pytest.raises(DataError, match=rf"validation\.benchmarks {NAME}: .*none found"):
        train(empty)
    assert not (Path(empty.run.dir) / "metrics.jsonl").exists()
    assert not (tmp_path / "sft" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "settings, problem",
    [
        (["validation.every=null", "checkpoint.best=null"], "nothing is asked: set validation.ev"),
        (["validation.benchmarks_dir=null"], "say with validation.benchmarks_dir where"),
        (["checkpoint.best=benchmark/mmmu"], r"is not among validation.benchmarks \(realworldqa\)"),
    ],
)
def test_settings_that_contradict_each_other(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        load_config("tiny/sft", [*wanted(Path("data")), *settings])
