"""`nvlm ablate` on the tiny model: real trainings, a cell that fails, and what goes on where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.grids import start_soon, table, write_grid
from helpers.paths import REPOSITORY
from helpers.spawn import metrics

from nvlm.ablate.grid import ablate, dry_run, open_grid
from nvlm.convert import convert_from_hf
from nvlm.errors import ConfigError, TrainingError

FAILING = {
    "tags": {"none": {"stage.tile_tags": "none"}},
    "weights": {"missing": {"checkpoint.load": "no/such/checkpoint"}},
}


def run(path: Path, *overrides: str, num_jobs: int = 2) -> None:
    ablate(str(path), None, overrides, num_jobs, start_soon)


@pytest.fixture(scope="module")
def grid(demo_data: Path, tmp_path_factory) -> Path:
    """Two cells that are trained and one that cannot be."""
    path = write_grid(tmp_path_factory.mktemp("grid") / "tags.yaml", demo_data, axes=FAILING)
    with pytest.raises(TrainingError) as caught:
        run(path)
    (line,) = caught.value.args
    folder = path.parent / "cells_of_tags/cells"
    assert line.startswith("weights=missing/seed_1: exit code 2: no/such/checkpoint: no such ch")
    assert str(folder / "weights=missing/seed_1.log") in line
    return path


def test_cells_are_ordinary_runs_with_their_difference_beside(grid: Path):
    folder = grid.parent / "cells_of_tags"
    for name in ("base", "tags=none"):
        assert len(metrics(folder / f"cells/{name}/seed_1")) == 2
    there = yaml.safe_load((folder / "cells/tags=none/difference.yaml").read_text())
    assert there == {"stage.tile_tags": {"base": "1d", "cell": "none"}}
    found = table(folder)
    assert [cell["rank"] for cell in found["cells"]] == [1, 2, None]
    by_name = {cell["name"]: cell for cell in found["cells"]}
    for name in ("base", "tags=none"):
        lines = (folder / f"cells/{name}/seed_1/between_steps.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        for key in ("validation/loss", "validation/loss/digits"):
            assert by_name[name]["metrics"][key]["mean"] == last[key]
    both = [by_name[name]["metrics"]["validation/loss"] for name in ("tags=none", "base")]
    assert both[0]["to_base"]["difference"] == both[0]["mean"] - both[1]["mean"] != 0
    assert not both[0]["to_base"]["is_told_apart"]  # one seed, and no questions
    assert found["failures"][0]["what"] == "weights=missing/seed_1"
    assert by_name["base"]["cost"]["trained_tokens"] == sum(
        line["tokens"] for line in metrics(folder / "cells/base/seed_1")
    )


def test_what_exists_is_not_run_again_and_what_changed_is_refused(grid: Path, capsys):
    folder = grid.parent / "cells_of_tags"
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    with pytest.raises(ConfigError) as caught:
        run(grid, "train.optimizer.lr=0.002")
    assert [line.split(" has begun")[0] for line in caught.value.args] == [
        "cell base seed 1", "cell tags=none seed 1",
    ]  # fmt: skip
    assert "train.optimizer.lr 0.001 (now 0.002)" in caught.value.args[0]
    # The failed cell, put right; layouts and logs make no other run.
    values = yaml.safe_load(grid.read_text())
    values["axes"]["weights"] = {"shallow": {"stage.max_num_tiles": 2}}
    other = grid.with_name("other.yaml")
    other.write_text(yaml.safe_dump(values))
    capsys.readouterr()
    dry_run(str(other), None, ["log.every=2"])
    printed = capsys.readouterr().out
    assert "not in the grid, and left alone: weights=missing" in printed
    assert "weights=shallow: stage.max_num_tiles 6 -> 2" in printed
    run(other, "log.every=2")
    said = capsys.readouterr().out
    assert "1 of 1: weights=shallow/seed_1" in said
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(cell["rank"] for cell in table(folder)["cells"]) == [1, 2, 3]


def test_first_weights_are_converted_once_and_trained_from(demo_data: Path, tmp_path: Path, capsys):
    """As `nvlm convert from-hf` makes them of the same model, whose encoder stays frozen."""
    assets = REPOSITORY / "assets/tiny"
    sources = {"vision": str(assets / "internvit"), "language": str(assets / "qwen2")}
    path = write_grid(
        tmp_path / "g.yaml", demo_data, first_weights=sources, rank_by="train/loss",
        axes={"tags": {"none": {"stage.tile_tags": "none"}},
              "tokens": {"4": {"model.connector.pixel_shuffle": 4}}},
    )  # fmt: skip
    short = ["train.steps=1", "validation.every=null"]
    run(path, *short)
    said = capsys.readouterr().out
    assert said.count(": initial/") == 2 * 2 and "5 of 5" in said
    folder = tmp_path / "cells_of_g"
    base, tags, tokens = open_grid(str(path), None, short)[3]
    made, other = base.runs[1].initial, tokens.runs[1].initial
    assert tags.runs[1].initial == made != other
    by_hand = tmp_path / "by_hand"
    convert_from_hf(sources["vision"], sources["language"], made.config, by_hand)
    ours, theirs = checkpoint_tensors(made.folder), checkpoint_tensors(by_hand)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Done cells need no weights any more, and are not run again without.
    shutil.rmtree(made.folder)
    run(path, *short)
    assert not made.folder.exists()
    assert sorted(cell["rank"] for cell in table(folder)["cells"]) == [1, 2, 3]
