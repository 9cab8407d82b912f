"""The grids that come with nvlm: every cell is a run that is checked, with what its paper says."""

from __future__ import annotations

import pytest

from nvlm.ablate.cells import difference_of, make_cells
from nvlm.ablate.grid import dry_run, open_grid
from nvlm.ablate.grid_file import find_grid, grid_names, read_grid
from nvlm.errors import ConfigError


@pytest.mark.parametrize("name", grid_names())
def test_a_shipped_grid_is_whole(name: str, tmp_path, monkeypatch, capsys):
    """Every cell of it is a run without contradictions, whose hours can be planned."""
    monkeypatch.chdir(tmp_path)
    dry_run(name, None, [])
    printed = capsys.readouterr().out
    grid, _, folder, cells = open_grid(name)
    assert str(folder) == f"runs/ablation/{name}" and not folder.exists()
    assert cells[0].is_base and len(cells) > 1
    assert all(difference_of(cell, cells[0]) for cell in cells[1:])
    assert f"{len(cells)} cells x {len(grid.seeds)} seeds" in printed
    assert ("GPU hours in all" in printed) == (grid.card is not None)


def test_the_papers_tile_tags_are_trained_as_its_table_1_says():
    cells = make_cells(read_grid(find_grid("tile_tags")), find_grid("tile_tags").parent)
    for cell in cells:
        config = cell.runs[1234].config
        assert (config.train.steps, config.train.global_batch_size) == (20_000, 128)
        assert config.train.schedule.decay_steps == 20_000
        assert config.model.name == "nvlm_d_34b"
    base, low, *others = cells
    assert base.runs[1234].config.stage.tile_tags == "1d"
    assert difference_of(low, base).keys() == {
        "stage.max_num_tiles", "stage.use_thumbnail", "stage.tile_tags",
    }  # fmt: skip
    assert all(difference_of(cell, base).keys() == {"stage.tile_tags"} for cell in others)


def test_parts_that_differ_in_kind_alone_make_two_cells(tmp_path):
    """Each of eight connectors begins from a first stage of its own, those of equal keys too."""
    cells = make_cells(read_grid(find_grid("connectors")), tmp_path)
    firsts = [cell.runs[1234].before for cell in cells]
    assert len(cells) == 16 and len({run.folder for run in firsts if run}) == 8


def test_a_name_that_is_near(tmp_path):
    with pytest.raises(ConfigError, match=r"tile_tag: no such grid file; did you mean tile_tags"):
        find_grid("tile_tag")


def test_paths_mean_what_they_mean_in_configurations(tmp_path, monkeypatch):
    monkeypatch.setenv("PLACE", str(tmp_path / "p"))
    axes = "axes: {tags: {none: {stage.tile_tags: none}}}\n"
    asked = "evaluate: {data_root: ./data, suite: [chartqa], data: $PLACE/b}\n"
    path = tmp_path / "g.yaml"
    path.write_text(f"base: ./sft.yaml\n{axes}{asked}")
    grid = read_grid(path)
    assert grid.base == str(tmp_path / "sft.yaml")
    assert grid.dir == "runs/ablation/g"
    assert grid.evaluate.data_root == str(tmp_path / "data")
    assert grid.evaluate.data == str(tmp_path / "p/b")
    assert grid.ranked_by == "answers"
