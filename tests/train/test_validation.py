"""Validation during training: the same measurements at every layout, and nothing else changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import small_runs
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.spawn import metrics, run_or_fail

pytestmark = pytest.mark.parallel

STEPS = 3
# Weights large enough that answers differ; sources of images, of several images, and of text.
SETTINGS = [
    f"train.steps={STEPS}",
    "train.precision=fp32",
    "train.global_batch_size=2",
    *small_runs.SHORT_ROWS,
    "data.num_workers=0",
    "log.tensorboard=false",
    "model.vision.num_layers=1",
    "model.language.init_std=0.2",
    "train.loss_weighting=sqrt_length",
    "stage.freeze=[]",
    "data.blend={digits: {loss_weight: 2.0}, multi_image: 1, text: {max_num_tiles: 2}}",
]
VALIDATION = [
    "validation.every=2",
    "validation.sources=[digits, multi_image, text]",
    "validation.samples=4",
    "validation.questions=2",
    "validation.max_new_tokens=4",
]
SOURCES = ["digits", "multi_image", "text"]
LAYOUTS = {
    "tensor2-sequence-tiles": [
        "parallel.tensor=2",
        "parallel.sequence=true",
        "parallel.vision=tile_parallel",
        "stage.freeze=[vision_model.*]",
    ],
    "pipeline2-virtual2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    "data2": ["data.num_workers=1"],  # its workers start beside those of the training
    "tensor2": ["parallel.tensor=2"],
    "context2": ["parallel.context=2"],
}


def train(folder: Path, demo_data: Path, num_processes: int, *more: str) -> Path:
    settings = [*small_runs.over(demo_data), f"run.dir={folder}", *SETTINGS, *more]
    log = folder.with_suffix(".log")
    run_or_fail(num_processes, "train", "configs/run/tiny/sft.yaml", *settings, log=log)
    return folder


def measured(folder: Path) -> list[dict]:
    lines = (folder / "between_steps.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "validation/loss" in record]


def generations(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(demo_data: Path, tmp_path_factory) -> Path:
    """With a checkpoint behind step 2, between two measurements."""
    folder = tmp_path_factory.mktemp("validation") / "single"
    return train(folder, demo_data, 1, *VALIDATION, "checkpoint.every=2")


def test_what_is_measured_and_written(single: Path):
    first, last = measured(single)
    assert (first["step"], last["step"]) == (2, STEPS)
    losses = [f"validation/loss/{source}" for source in SOURCES]
    assert [key for key in first if key.startswith("validation/loss/")] == losses
    tasks = [key for key in first if key.startswith("validation/exact_match/")]
    # A mean of the sources' by their weights.
    of_sources = [first[key] for key in losses]
    assert min(of_sources) < first["validation/loss"] < max(of_sources)
    rows = generations(single)
    # Two of each task, the same ones at each step.
    asked = [[row["sample_id"] for row in rows if row["step"] == step] for step in (2, STEPS)]
    assert asked[0] == asked[1] and len(asked[0]) == len(set(asked[0])) == 2 * len(tasks) > 2
    assert {row["source"] for row in rows} == set(SOURCES)
    assert len({row["answer"] for row in rows}) > 3, "a test of answers needs some that vary"
    for record in (first, last):
        scores = [row["score"] for row in rows if row["step"] == record["step"]]
        assert record["validation/exact_match"] == sum(scores) / len(scores)


def test_training_is_the_same_without(single: Path, demo_data, tmp_path):
    without = train(tmp_path / "without", demo_data, 1)
    assert not (without / "generations.jsonl").exists()
    for ours, truth in zip(metrics(single), metrics(without), strict=True):
        different = {key for key in truth if ours[key] != truth[key]}
        of_the_clock = {key for key in truth if "second" in key} | {"time", "peak_memory_bytes"}
        assert not different - of_the_clock
    ours, truth = (
        checkpoint_tensors(folder / "checkpoints" / f"step_{STEPS:08d}")
        for folder in (single, without)
    )
    assert ours.keys() == truth.keys()
    assert [key for key in truth if not (ours[key] == truth[key]).all()] == []


@pytest.mark.parametrize("layout", list(LAYOUTS)[:1])
def test_layouts_measure_the_same(layout: str, single: Path, demo_data, tmp_path, measure):
    same_layout(layout, single, demo_data, tmp_path, measure)


@pytest.mark.slow
@pytest.mark.parametrize("layout", list(LAYOUTS)[1:])
def test_more_layouts_measure_the_same(layout: str, single: Path, demo_data, tmp_path, measure):
    same_layout(layout, single, demo_data, tmp_path, measure)


def same_layout(layout: str, single: Path, demo_data, tmp_path: Path, measure) -> None:
    """From the checkpoint of one process, so that all of them measure the same weights."""
    found = tmp_path / "run"
    shutil.copytree(single / "checkpoints" / "step_00000002", found / "from")
    learn_nothing = ["train.optimizer.lr=1e-30", "train.optimizer.min_lr=0"]
    train(
        found,
        demo_data,
        2,
        *VALIDATION,
        f"checkpoint.load={found / 'from'}",
        *learn_nothing,
        "train.steps=1",
        *LAYOUTS[layout],
    )
    (ours,), truth = measured(found), measured(single)[0]
    keys = [key for key in truth if key.startswith("validation/") and "seconds" not in key]
    assert keys == [key for key in ours if key in keys]
    error = max(abs(ours[key] - truth[key]) / max(abs(truth[key]), 1e-9) for key in keys)
    what = f"validation's losses and exact matches, {layout}, relative"
    measure(what, "one process", error, 1e-5)
    rows, expected = (
        [(row["sample_id"], row["answer"]) for row in generations(folder)]
        for folder in (found, single)
    )
    assert rows == expected[: len(rows)] and len(rows) == len(expected) / 2


def test_resuming_measures_the_same_samples(single: Path, demo_data, tmp_path):
    """A run that was killed after step 3 goes on at step 2."""
    folder = tmp_path / "run"
    shutil.copytree(single, folder)
    shutil.rmtree(folder / "checkpoints" / f"step_{STEPS:08d}")
    train(folder, demo_data, 1, *VALIDATION, "checkpoint.every=2")
    for ours, truth in zip(measured(folder), measured(single), strict=True):
        for record in (ours, truth):
            del record["validation/seconds"], record["time"]
        assert ours == truth
    assert generations(folder) == generations(single)


def test_exact_matches_are_those_of_an_evaluation(single: Path, demo_data, tmp_path):
    out = tmp_path / "answers.jsonl"
    arguments = ["--data-root", demo_data, "--out", out, "--limit-per-task", 2]
    checkpoint = single / "checkpoints" / f"step_{STEPS:08d}"
    words = map(str, ["evaluate", checkpoint, *arguments, "--max-new-tokens", 4])
    run_or_fail(1, *words, log=tmp_path / "log")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    truth = {row["sample_id"]: row for row in rows if row["source"] in SOURCES}
    found = [row for row in generations(single) if row["step"] == STEPS]
    assert len(found) == len(truth)
    for row in found:
        assert row == {"step": STEPS, **{k: truth[row["sample_id"]][k] for k in row if k != "step"}}
