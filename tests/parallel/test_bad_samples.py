"""A corrupt image and corrupt JSON are skipped, counted and named; training goes on.

Also where each process of a replica reads a share of the tiles, and finds that for all of them.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from helpers.shard_writing import corrupt_members
from helpers.spawn import metrics, run_or_fail
from PIL import Image

from nvlm.files import read_json_lines
from nvlm.train.run_folder import BETWEEN_STEPS_FILE


def copy_with_alpha(shard: Path, to: Path) -> None:
    """A shard whose pictures have an alpha channel."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard) as source, tarfile.open(to, "w") as target:
        for member in source:
            data = source.extractfile(member).read()
            if member.name.endswith(".png"):
                picture = io.BytesIO()
                Image.open(io.BytesIO(data)).convert("RGBA").save(picture, "PNG")
                data = picture.getvalue()
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))


@pytest.mark.parallel
def test_training_goes_on(demo_data, tmp_path):
    root = tmp_path / "data"
    # Sixty samples: a step reads about as many.
    for shard in sorted((demo_data / "heldout" / "digits").glob("*.tar")):
        copy_with_alpha(shard, root / "train" / "digits" / shard.name)
    shard = sorted((root / "train" / "digits").glob("*.tar"))[0]
    bad_json = corrupt_members(shard, ".json", 2)
    images = corrupt_members(shard, ".png", 12)
    bad_images = [key for key in images if key not in bad_json]
    folder = tmp_path / "run"
    run_or_fail(
        2,
        "train",
        "configs/run/tiny/sft.yaml",
        f"data.root={root}",
        f"run.dir={folder}",
        # Enough to pass over the whole source.
        "train.steps=4",
        "data.max_skipped_share=1",
        "train.global_batch_size=8",
        "model.vision.num_layers=1",
        "model.language.num_layers=1",
        "log.tensorboard=false",
        log=tmp_path / "log",
    )
    records = metrics(folder)
    assert len(records) == 4
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    # What the index rejects is named before the first step and never drawn.
    assert {sample["reason"] for sample in skipped if sample["step"] == 0} == {"json"}
    # The others count whenever they are drawn, and are named once.
    drawn = [sample["key"] for sample in skipped if sample["step"] > 0]
    assert len(set(drawn)) == len(drawn) <= sum(record["skipped"] for record in records)
    assert records[-1]["skipped_total"] == sum(record["skipped"] for record in records)
    # What was done to the others is counted, over both ranks.
    for record in records:
        assert record["repaired/digits/alpha_dropped"] == record["samples"]
    by_reason = sum(record.get("skipped/digits/image", 0) for record in records)
    assert by_reason == records[-1]["skipped_total"]
    named = {sample["key"].rpartition("/")[2] for sample in skipped}
    assert set(bad_json) <= named
    assert set(bad_images) & named, (bad_images, skipped)
    assert all(shard.name in sample["shard"] for sample in skipped)
    assert named <= set(bad_json) | set(bad_images)


@pytest.mark.slow
@pytest.mark.parallel
def test_damage_that_one_process_finds_is_left_out_by_its_replica(demo_data, tmp_path):
    """Against one process that reads all; four share the tiles, so that shares cut samples."""
    root = tmp_path / "data"
    shutil.copytree(demo_data / "train" / "digits", root / "train" / "digits")
    corrupt_members(sorted((root / "train" / "digits").glob("*.tar"))[0], ".png", 12)
    shutil.copytree(demo_data / "heldout" / "digits", root / "heldout" / "digits")
    runs = {
        1: [],
        4: ["parallel.tensor=2", "parallel.pipeline=2", "parallel.vision=tile_parallel"],
    }
    for num_processes, layout in runs.items():
        run_or_fail(
            num_processes,
            "train",
            "configs/run/tiny/sft.yaml",
            f"data.root={root}",
            f"data.index_dir={tmp_path / 'index'}",
            f"run.dir={tmp_path / str(num_processes)}",
            "data.num_workers=1",
            "train.steps=6",
            "train.global_batch_size=4",
            "train.precision=fp32",
            "model.vision.num_layers=1",
            "model.language.num_layers=2",
            "log.tensorboard=false",
            "validation.every=3",
            "validation.samples=10",
            *layout,
            log=tmp_path / "log",
        )
    alone, shared = (metrics(tmp_path / str(num_processes)) for num_processes in runs)
    assert alone[-1]["skipped_total"] > 0
    exact = ("step", "tokens", "tiles", "samples", "skipped", "skipped_total", "padding")
    for one, four in zip(alone, shared, strict=True):
        assert {name: one[name] for name in exact} == {name: four[name] for name in exact}
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)
    skipped = [(tmp_path / str(n) / "skipped.jsonl").read_text() for n in runs]
    assert skipped[0] == skipped[1]
    # Held-out samples are shared out in the same way.
    validated = [[*read_json_lines(tmp_path / str(n) / BETWEEN_STEPS_FILE)] for n in runs]
    assert [record["step"] for record in validated[0]] == [3, 6]
    for one, four in zip(*validated, strict=True):
        assert four["validation/loss"] == pytest.approx(one["validation/loss"], rel=1e-4)
