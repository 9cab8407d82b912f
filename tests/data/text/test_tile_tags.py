"""The tags of tiles: their texts here, their ids in test_golden_qwen_ids.py."""

from __future__ import annotations

import pytest

from nvlm.data.images.tiling import candidate_grids
from nvlm.data.text.tile_tags import TagStyle, TileTags

THUMBNAIL = "<tile_global_thumbnail>"


def style(tile_tags: TileTags = "1d", use_thumbnail: bool = True, max_num_tiles: int = 6):
    return TagStyle(tile_tags, use_thumbnail, max_num_tiles, image_size=448)


def test_one_tag_per_tile_and_the_thumbnail_last():
    assert style().tags((3, 2)) == [
        "<tile_1>", "<tile_2>", "<tile_3>", "<tile_4>", "<tile_5>", "<tile_6>", THUMBNAIL,
    ]  # fmt: skip
    assert style().tags((1, 2)) == ["<tile_1>", "<tile_2>", THUMBNAIL]


@pytest.mark.parametrize("tile_tags", ["1d", "2d_grid", "2d_box"])
@pytest.mark.parametrize("use_thumbnail", [True, False])
def test_a_single_tile_shows_the_whole_image(tile_tags: TileTags, use_thumbnail: bool):
    assert style(tile_tags, use_thumbnail).tags((1, 1)) == [THUMBNAIL]


def test_without_thumbnail_every_tile_has_a_number():
    assert style(use_thumbnail=False).tags((3, 1)) == ["<tile_1>", "<tile_2>", "<tile_3>"]


def test_no_tags():
    assert style("none").tags((2, 1)) == ["", "", ""]
    assert style("none").tags((1, 1)) == [""]


def test_grid_tags_name_column_and_row():
    assert style("2d_grid").tags((2, 2)) == [
        "<tile_x0_y0>", "<tile_x1_y0>", "<tile_x0_y1>", "<tile_x1_y1>", THUMBNAIL,
    ]  # fmt: skip


def test_box_tags_name_pixels_of_the_resized_image():
    assert style("2d_box", use_thumbnail=False).tags((2, 2)) == [
        "<box> (0, 0), (448, 448) </box>",
        "<box> (448, 0), (896, 448) </box>",
        "<box> (0, 448), (448, 896) </box>",
        "<box> (448, 448), (896, 896) </box>",
    ]


@pytest.mark.parametrize(("max_num_tiles", "digits"), [(9, 1), (10, 2), (12, 2), (99, 2), (100, 3)])
def test_numbers_of_a_stage_have_equally_many_digits(max_num_tiles: int, digits: int):
    tags = style(max_num_tiles=max_num_tiles).tags((max_num_tiles, 1))
    assert tags[0] == f"<tile_{'1'.zfill(digits)}>"
    assert tags[-1] == f"<tile_global_thumbnail{'0' * (digits - 1)}>"
    assert {len(tag) for tag in tags[:-1]} == {len("<tile_>") + digits}
    # However few tiles an image has, its tags are those of the stage.
    assert style(max_num_tiles=max_num_tiles).tags((1, 1)) == [tags[-1]]
    assert style(max_num_tiles=max_num_tiles).tags((2, 1))[:2] == tags[:2]


@pytest.mark.parametrize("max_num_tiles", [6, 9, 12, 40, 99, 128])
def test_tags_of_a_model_have_equally_many_tokens(qwen_tokenizer, max_num_tiles: int):
    one_dimensional, grid = style("1d", True, max_num_tiles), style("2d_grid", True, max_num_tiles)
    numbered = one_dimensional.tags((max_num_tiles, 1))
    assert len(set(qwen_tokenizer.count(numbered))) == 1
    tiles = {tag for shape in candidate_grids(max_num_tiles) for tag in grid.tags(shape)}
    assert len(set(qwen_tokenizer.count(sorted(tiles - {THUMBNAIL})))) == 1


@pytest.mark.parametrize("tile_tags", ["1d", "2d_grid", "2d_box"])
@pytest.mark.parametrize("max_num_tiles", [6, 12])
def test_tags_of_an_image_differ_and_none_begins_another(tile_tags: TileTags, max_num_tiles: int):
    tagger = style(tile_tags, max_num_tiles=max_num_tiles)
    for grid in candidate_grids(max_num_tiles):
        tags = tagger.tags(grid)
        assert len(tags) == len(set(tags)) == tagger.num_tiles(grid)
        assert not any(a != b and b.startswith(a) for a in tags for b in tags)
