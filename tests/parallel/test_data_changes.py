"""What a run does when its data change, are too bad, or end; and weighted losses over ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import small_runs
from helpers.shard_writing import corrupt_members
from helpers.spawn import metrics, run, run_or_fail


def arguments(folder: Path, data: Path, *overrides: str) -> list[str]:
    return [
        "train",
        "configs/run/tiny/sft.yaml",
        f"data.root={data}",
        f"run.dir={folder}",
        "train.global_batch_size=2",
        *small_runs.SHORT_ROWS,
        "model.language.num_layers=2",
        "model.vision.num_layers=2",
        "log.tensorboard=false",
        *overrides,
    ]


@pytest.mark.parallel
def test_a_run_keeps_the_image_boundary_that_it_began_with(demo_data, tmp_path):
    """One that began with another default goes on with its own, and its export carries it."""
    folder, log = tmp_path / "run", tmp_path / "log"
    options = arguments(folder, demo_data, "data.blend={digits: 1}")
    run_or_fail(1, *options, "stage.image_boundary=merged", "train.steps=2", log=log)
    log.unlink()
    assert run(1, *options, "train.steps=3", log=log) == 2
    said = log.read_text().splitlines()[-1]
    assert "stage.image_boundary was 'merged', is 'block'" in said and "Put these back" in said
    run_or_fail(1, *options, "stage.image_boundary=merged", "train.steps=3", log=log)
    assert [record["step"] for record in metrics(folder)] == [1, 2, 3]

    log.unlink()
    run_or_fail(1, "convert", "to-hf", str(folder), str(tmp_path / "export"), log=log)
    assert "trained with stage.image_boundary merged" in " ".join(log.read_text().split())
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["image_boundary"] == "merged"
    assert "vLLM from 0.29 on feeds two" in " ".join(
        (tmp_path / "export" / "README.md").read_text().split()
    )


@pytest.mark.parallel
def test_another_blend_needs_the_flag(demo_data, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    options = arguments(folder, demo_data, "data.blend={digits: 1, text: 1}", "train.steps=2")
    run_or_fail(1, *options, log=log)
    changed = arguments(folder, demo_data, "data.blend={digits: 1, charts: 3}", "train.steps=4")
    assert run(1, *changed, log=log) == 2
    said = log.read_text().splitlines()[-1]
    assert "data.blend was {'digits': 1.0, 'text': 1.0}, is {'digits': 1.0, 'charts': 3.0}" in said
    assert "source charts is new; source text is gone" in said and "--allow-data-change" in said
    assert len(metrics(folder)) == 2

    log.unlink()
    run_or_fail(2, *changed, "--allow-data-change", log=log)
    assert "data: source charts begins at its first sample" in log.read_text()
    assert [record["step"] for record in metrics(folder)] == [1, 2, 3, 4]
    # The new data are the run's own from now on.
    progress = folder / "checkpoints" / "latest" / "progress.json"
    saved = json.loads(progress.read_text())["data_state"]["fingerprint"]
    assert saved["data.blend"] == {"digits": 1.0, "charts": 3.0}


@pytest.mark.parallel
def test_too_many_bad_samples_end_the_run(demo_data, tmp_path):
    root, folder, log = tmp_path / "data", tmp_path / "run", tmp_path / "log"
    shutil.copytree(demo_data / "train" / "digits", root / "train" / "digits")
    for shard in sorted((root / "train" / "digits").glob("*.tar")):
        corrupt_members(shard, ".png", 10**6)
    options = arguments(folder, root, "train.steps=20", "data.max_skipped_share=0.3")
    assert run(2, *options, log=log) != 0
    said = log.read_text()
    assert "samples were skipped, more than data.max_skipped_share 0.3" in said
    assert "digits/image" in said and "Such as digits/" in said
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) >= 20
    assert sum(record["skipped/digits/image"] for record in metrics(folder)) >= 20


@pytest.mark.parallel
def test_data_that_end_leave_a_checkpoint(demo_data, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    blend = "data.blend={text: {max_epochs: 0.2}}"
    assert run(1, *arguments(folder, demo_data, blend, "train.steps=500"), log=log) == 2
    steps = len(metrics(folder))
    assert f"every source has reached its max_epochs: the data ended at step {steps} of" in (
        log.read_text()
    )
    assert (folder / "checkpoints" / f"step_{steps:08d}" / "progress.json").exists()


@pytest.mark.parallel
def test_weighted_loss_is_the_same_over_ranks(demo_data, tmp_path):
    blend = "data.blend={digits: {loss_weight: 0.25}, ocr: 1, text: {loss_weight: 3}}"
    found = {}
    for num_processes in (1, 2):
        folder = tmp_path / f"run{num_processes}"
        options = arguments(folder, demo_data, blend, "train.steps=3", "train.precision=fp32")
        weighting = "train.loss_weighting=sqrt_length"
        run_or_fail(num_processes, *options, weighting, log=tmp_path / "log")
        found[num_processes] = [(r["loss"], r["grad_norm"]) for r in metrics(folder)]
    for ours, truth in zip(found[2], found[1], strict=True):
        assert ours[0] == pytest.approx(truth[0], rel=1e-6)
        assert ours[1] == pytest.approx(truth[1], rel=1e-5)
