"""From a grid to complete runs: what they are, where they lie, and all that is refused of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers.paths import REPOSITORY

from nvlm.ablate.cells import difference_of, make_cells
from nvlm.ablate.existing import all_initial, all_runs
from nvlm.ablate.grid_file import read_grid
from nvlm.ablate.tasks import conversion_arguments
from nvlm.config import load_config, load_runs
from nvlm.errors import ConfigError

TINY = REPOSITORY / "configs" / "run" / "tiny"
WEIGHTS = {"vision": "a", "language": "b"}
TAGS = {"none": {"stage.tile_tags": "none"}, "2d_grid": {"stage.tile_tags": "2d_grid"}}
LENGTHS = {"long": {"stage.sequence_length": 640}}


def cells_of(folder: Path, **values):
    path = folder / "grid.yaml"
    values = {"base": str(TINY / "sft.yaml"), "axes": {"tags": TAGS}} | values
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return make_cells(read_grid(path), folder / "cells_here")


def refusal(folder: Path, **values) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        cells_of(folder, **values)
    return list(map(str, caught.value.args))


def test_a_cell_is_the_run_that_the_same_overrides_give(tmp_path):
    axes = {"tags": TAGS, "length": LENGTHS}
    cells = cells_of(tmp_path, axes=axes, seeds=[1, 2], set={"train.steps": 7})
    assert [cell.name for cell in cells] == ["base", "tags=none", "tags=2d_grid", "length=long"]
    run = cells[1].runs[2]
    assert run.folder == tmp_path / "cells_here/cells/tags=none/seed_2"
    own = [f"run.dir={run.folder}", f"run.name={run.config.run.name}", "train.seed=2"]
    own += ["train.steps=7", "stage.tile_tags=none", f"data.index_dir={tmp_path}/cells_here/index"]
    assert run.config == load_config(TINY / "sft.yaml", own)
    assert difference_of(cells[1], cells[0]) == {"stage.tile_tags": ["1d", "none"]}
    assert difference_of(cells[0], cells[0]) == {}


def test_the_product_has_every_combination(tmp_path):
    cells = cells_of(tmp_path, axes={"tags": TAGS, "length": LENGTHS}, combine="product")
    assert [cell.name for cell in cells][3:] == [
        "length=long", "tags=none+length=long", "tags=2d_grid+length=long",
    ]  # fmt: skip
    assert difference_of(cells[-1], cells[0]).keys() == {"stage.tile_tags", "stage.sequence_length"}


def test_cells_that_begin_alike_share_their_first_stage(tmp_path):
    axes = {
        "tags": {"none": {"stages.sft.stage.tile_tags": "none"}},
        "lr": {"low": {"stages.pretrain.train.optimizer.lr": 0.001}},
    }
    cells = cells_of(tmp_path, base=str(TINY / "stages.yaml"), axes=axes, seeds=[1, 2])
    base, tags, lr = cells
    for seed in (1, 2):
        assert base.runs[seed].before == tags.runs[seed].before
        assert base.runs[seed].before.folder != lr.runs[seed].before.folder
    assert base.runs[1].before.folder != base.runs[2].before.folder
    assert len(all_runs(cells)) == 2 * (3 + 2)
    # The shared run is a run of its own, and the next starts from it as a stage of a file does.
    run = base.runs[1]
    assert run.config.checkpoint.load == str(run.before.folder)
    as_file = load_runs(TINY / "stages.yaml", ["train.seed=1"])["sft"]
    same = {"run": as_file.run, "checkpoint": as_file.checkpoint, "data": as_file.data}
    assert run.config.model_copy(update=same) == as_file
    assert difference_of(lr, base) == {"stages.pretrain.train.optimizer.lr": [0.003, 0.001]}
    # Wherever the grid lies, a stage has its name.
    elsewhere = make_cells(read_grid(tmp_path / "grid.yaml"), Path("other"))
    assert elsewhere[0].runs[1].before.folder.name == run.before.folder.name


def test_first_weights_are_made_for_each_model_and_seed(tmp_path):
    axes = {
        "tags": {"none": {"stages.sft.stage.tile_tags": "none"}},
        "connector": {"linear": {"model.connector": {"kind": "linear"}}},
        "language": {"other": {"first_weights.language": "./other"}},
    }
    base = str(TINY / "stages.yaml")
    cells = cells_of(tmp_path, base=base, axes=axes, seeds=[1, 2], first_weights=WEIGHTS)
    base, tags, connector, language = (cell.runs[1] for cell in cells)
    first = base.chain[0]
    assert first.initial is not None
    assert first.config.checkpoint.load == str(first.initial.folder)
    assert base.initial is None and base.config.checkpoint.load == str(first.folder)
    assert tags.before == first
    assert language.chain[0].initial.sources.language == str(tmp_path / "other")
    assert conversion_arguments(first.initial)[2:6] == ["--vision", "a", "--language", "b"]
    others = [connector, language, cells[0].runs[2]]
    assert len({first.initial.folder, *(run.chain[0].initial.folder for run in others)}) == 4
    assert len(all_initial(cells)) == 2 * 3
    assert difference_of(cells[2], cells[0])["stages.pretrain.model.connector.kind"]
    assert not any("load" in key for key in difference_of(cells[2], cells[0]))
    assert difference_of(cells[3], cells[0]) == {
        "first_weights.language": ["b", str(tmp_path / "other")]
    }


def test_all_problems_of_all_cells_are_found_at_once(tmp_path):
    axes = {
        "tags": TAGS,
        "batch": {"odd": {"train.micro_batch_size": 3}, "typo": {"stage.tile_tag": "none"}},
    }
    assert refusal(tmp_path, axes=axes) == [
        f"cell batch=odd: {TINY}/sft.yaml: train.global_batch_size 4 is not a multiple of "
        "train.micro_batch_size 3",
        f"cell batch=typo: {TINY}/sft.yaml: unknown key 'stage.tile_tag'; did you mean "
        "'stage.tile_tags'? (in override stage.tile_tag=none)",
    ]
    # What the base and all cells have in common is said once.
    (line,) = refusal(tmp_path, processes=3)
    assert line.startswith(f"{TINY}/sft.yaml: train.global_batch_size 4 is not a multiple of data-")


def test_cells_with_the_same_configuration_are_named(tmp_path):
    axes = {"tags": {"1d": {"stage.tile_tags": "1d"}, "a": TAGS["none"], "b": TAGS["none"]}}
    assert refusal(tmp_path, axes=axes) == [
        "cells base and tags=1d have the same configuration: remove one of them: the base is "
        "always a cell",
        "cells tags=a and tags=b have the same configuration: remove one of them",
    ]


@pytest.mark.parametrize(
    "values, said",
    [
        ({"axes": {"a/b": TAGS}}, "'a/b' becomes part of a folder's name"),
        ({"axes": {"tags": {}}}, "axes.tags: has no value"),
        ({"axes": {"tags": {"x": {}}}}, "axes.tags.x: changes 0 fields"),
        ({"axes": {"t": {"x": dict.fromkeys("abcd", 1)}}}, "changes 4 fields; a value of an axis"),
        ({"axes": {"t": {"x": {"run.dir": "a"}}}}, "names and folders of runs are the grid's"),
        ({"set": {"stages.sft.train.seed": 1}}, "set.stages.sft.train.seed: seeds are the grid's"),
        ({"seeds": [1, 1]}, "seeds: [1, 1]: one is given twice"),
        ({"seeds": []}, "seeds: must not be empty"),
        ({"steps": 1}, "unknown key 'steps'"),
        ({"scaling": {"axis": "size"}}, "scaling.axis: no axis 'size'"),
        ({"evaluate": {"suite": ["chartqa"]}}, "evaluate.suite: needs evaluate.data"),
        ({"evaluate": {"suite": ["chart"], "data": "d"}}, "no benchmark 'chart'"),
        ({"set": {"checkpoint.load": "a"}, "first_weights": WEIGHTS}, "set.checkpoint.load: runs"),
        ({"set": {"first_weights.language": "a"}}, "set.first_weights.language: give the grid's"),
        ({"axes": {"t": {"x": {"first_weights.language": "a"}}}}, ".first_weights.language: give"),
        ({"axes": {"t": {"x": {"first_weights.l": "a"}}}, "first_weights": WEIGHTS},
         "t.x.first_weights.l: has vision, language"),
        ({"axes": {"t": {"x": {"first_weights.vision": None}}}, "first_weights": WEIGHTS},
         "t.x.first_weights.vision: nothing (null): should be a folder or a hub id or, of e"),
        ({"first_weights": {"vision": "a"}}, "missing key 'first_weights.language'"),
        ({"evaluate": {"mir": 10}}, "evaluate.mir: needs evaluate.data_root"),
    ],
)  # fmt: skip
def test_what_is_no_grid_is_refused(values, said, tmp_path):
    assert any(said in line for line in refusal(tmp_path, **values))
