"""What a grid becomes: tiles, tokens, and the texts of its tags.

The ids of tags are in tests/data/text/test_golden_qwen_ids.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.config.schema import Fusion
from nvlm.data.images.tiling import candidate_grids
from nvlm.errors import DataError
from nvlm.sizes.visual import Grid, TileTags, VisualLayout

THUMBNAIL = "<tile_global_thumbnail>"


def layout(tile_tags: TileTags = "1d", use_thumbnail: bool = True, max_num_tiles: int = 6):
    return VisualLayout(tile_tags, use_thumbnail, max_num_tiles, 448, num_tokens_per_tile=256)


@pytest.mark.parametrize(
    ("use_thumbnail", "expected"),
    [(True, {(1, 1): 1, (2, 1): 3, (3, 2): 7}), (False, {(1, 1): 1, (2, 1): 2, (3, 2): 6})],
)
def test_tiles_of_an_image_and_of_many(use_thumbnail: bool, expected: dict):
    visual = layout(use_thumbnail=use_thumbnail)
    assert {grid: visual.num_tiles(grid) for grid in expected} == expected
    columns, rows = (np.array(numbers) for numbers in zip(*expected, strict=True))
    many = visual.num_tiles((columns, rows))
    assert many.tolist() == list(expected.values())
    assert many.dtype == np.int64
    assert [visual.has_thumbnail(grid) for grid in expected] == [
        False, use_thumbnail, use_thumbnail
    ]  # fmt: skip
    assert visual.max_tiles_per_image == expected[3, 2]
    assert layout(use_thumbnail=use_thumbnail, max_num_tiles=1).max_tiles_per_image == 1


def test_learned_tags_of_tiles_that_are_left_out_stand_before_the_next_one():
    visual = replace(
        layout("soft", max_num_tiles=9), tiling="pad_skip", num_soft_tag_tokens=1, first_soft_id=100
    )
    # Of a square of 2 x 2, and of 3 x 3.
    assert visual.soft_tags((2, 1)) == [(101,), (102,), (103, 104, 100)]
    assert visual.soft_tags((2, 3)) == [
        (101,), (102,), (103, 104), (105,), (106, 107), (108,), (109, 100)
    ]  # fmt: skip
    assert visual.tags((2, 1)) == ["", "", ""]
    assert [visual.learned_name(n) for n in (100, 103)] == ["<soft_thumbnail>", "<soft_tile_3>"]
    visual.check_soft_tags((3, 3))
    with pytest.raises(DataError, match=r"in 10 x 1 tiles: .* stage\.max_num_tiles 9"):
        replace(visual, tiling="stretch").check_soft_tags((10, 1))


# Images of 7, 3 and 1 tiles, and what of them is where.
GRIDS: list[Grid] = [(3, 2), (1, 2), (1, 1)]


@pytest.mark.parametrize(
    ("fusion", "inside", "beside"),
    [
        ("decoder_only", [7, 3, 1], [0, 0, 0]),
        ("cross_attention", [0, 0, 0], [7, 3, 1]),
        ("hybrid", [1, 1, 1], [6, 2, 0]),
        ("stacked", [1, 1, 1], [0, 0, 0]),
    ],
)
def test_tokens_in_the_sequence_and_beside_it(fusion: str, inside: list[int], beside: list[int]):
    changes: Any = {"fusion": fusion} if fusion != "stacked" else {"stacks_tiles": True}
    visual = replace(layout(), **changes)
    tiles = np.array([visual.num_tiles(grid) for grid in GRIDS])
    assert visual.num_tokens(tiles, np.ones_like(tiles)).tolist() == [256 * n for n in inside]
    assert visual.num_tokens_beside(tiles, np.ones_like(tiles)).tolist() == [
        256 * n for n in beside
    ]
    # The same of all together.
    assert visual.num_tokens(11, 3) == 256 * sum(inside)
    assert visual.num_tokens_beside(11, 3) == 256 * sum(beside)
    # Tiles beside are an image's first ones: the thumbnail is its last.
    assert [visual.tiles_beside(grid) for grid in GRIDS] == [range(n) for n in beside]
    assert visual.num_tokens(0, 0) == visual.num_tokens_beside(0, 0) == 0


def test_tags_in_the_sequence_and_beside_it():
    tags = [["<tile_1>", "<tile_2>", THUMBNAIL], [THUMBNAIL]]
    grids: list[Grid] = [(2, 1), (1, 1)]
    expected: dict[Fusion, tuple[list, list]] = {
        "decoder_only": (tags, [[], []]),
        "cross_attention": (tags, [["", "", ""], [""]]),
        "hybrid": ([[THUMBNAIL], [THUMBNAIL]], [["<tile_1>", "<tile_2>"], []]),
    }
    for fusion, (inside, beside) in expected.items():
        visual = replace(layout(), fusion=fusion)
        assert [visual.tags_inside(grid) for grid in grids] == inside
        assert [visual.tags_beside(grid) for grid in grids] == beside


@pytest.mark.parametrize(
    ("num_tokens", "budget", "expected"), [(3200, None, 12), (3200, 7, 7), (3200, 40, 12)]
)
def test_tiles_that_fit_into_a_sequence(num_tokens: int, budget: int | None, expected: int):
    assert layout().num_fitting_tiles(num_tokens, budget) == expected


def test_tiles_beside_a_sequence_are_bounded_by_the_budget():
    in_x, in_h = (replace(layout(), fusion=name) for name in ("cross_attention", "hybrid"))
    assert in_x.num_fitting_tiles(1024, 28) == 28
    # Of 1,280 tokens five thumbnails, each with six more tiles.
    assert [in_h.num_fitting_tiles(1280, budget) for budget in (None, 28)] == [35, 28]


def test_stacked_tiles_have_no_tags_and_are_bounded():
    visual = replace(layout(), stacks_tiles=True)
    assert visual.tags((2, 1)) == ["", "", THUMBNAIL] and visual.tags_inside((2, 1)) == [THUMBNAIL]
    assert visual.num_fitting_tiles(1280, 28) == 28
    assert visual.stacked([(3, 2), (1, 1)]) == ((3, 2), (1, 1))
    with pytest.raises(DataError, match=r"in 7 x 1 tiles: .* stage\.max_num_tiles 6 at most"):
        visual.stacked([(1, 1), (7, 1)])
    assert layout().stacked([(7, 1)]) == ()


def test_the_configuration_reckons_with_the_same_tiles():
    for overrides in ([], ["stage.use_thumbnail=false"], ["stage.max_num_tiles=1"]):
        config = load_config(REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml", overrides)
        visual = VisualLayout.from_config(config)
        assert visual.max_tiles_per_image == config.max_tiles_per_image
        assert visual.num_tokens(1, 1) == config.model.num_tokens_per_tile == 256


def test_one_tag_per_tile_and_the_thumbnail_last():
    assert layout().tags((3, 2)) == [
        "<tile_1>", "<tile_2>", "<tile_3>", "<tile_4>", "<tile_5>", "<tile_6>", THUMBNAIL,
    ]  # fmt: skip
    assert layout().tags((1, 2)) == ["<tile_1>", "<tile_2>", THUMBNAIL]


@pytest.mark.parametrize("tile_tags", ["1d", "2d_grid", "2d_box"])
@pytest.mark.parametrize("use_thumbnail", [True, False])
def test_a_single_tile_shows_the_whole_image(tile_tags: TileTags, use_thumbnail: bool):
    assert layout(tile_tags, use_thumbnail).tags((1, 1)) == [THUMBNAIL]


def test_without_thumbnail_every_tile_has_a_number():
    assert layout(use_thumbnail=False).tags((3, 1)) == ["<tile_1>", "<tile_2>", "<tile_3>"]


def test_no_tags():
    assert layout("none").tags((2, 1)) == ["", "", ""]
    assert layout("none").tags((1, 1)) == [""]


def test_grid_tags_name_column_and_row():
    assert layout("2d_grid").tags((2, 2)) == [
        "<tile_x0_y0>", "<tile_x1_y0>", "<tile_x0_y1>", "<tile_x1_y1>", THUMBNAIL,
    ]  # fmt: skip


def test_box_tags_name_pixels_of_the_resized_image():
    assert layout("2d_box", use_thumbnail=False).tags((2, 2)) == [
        "<box> (0, 0), (448, 448) </box>",
        "<box> (448, 0), (896, 448) </box>",
        "<box> (0, 448), (448, 896) </box>",
        "<box> (448, 448), (896, 896) </box>",
    ]


@pytest.mark.parametrize(("max_num_tiles", "digits"), [(9, 1), (10, 2), (12, 2), (99, 2), (100, 3)])
def test_numbers_of_a_stage_have_equally_many_digits(max_num_tiles: int, digits: int):
    tags = layout(max_num_tiles=max_num_tiles).tags((max_num_tiles, 1))
    assert tags[0] == f"<tile_{'1'.zfill(digits)}>"
    assert tags[-1] == f"<tile_global_thumbnail{'0' * (digits - 1)}>"
    assert {len(tag) for tag in tags[:-1]} == {len("<tile_>") + digits}
    # However few tiles an image has, its tags are those of the stage.
    assert layout(max_num_tiles=max_num_tiles).tags((1, 1)) == [tags[-1]]
    assert layout(max_num_tiles=max_num_tiles).tags((2, 1))[:2] == tags[:2]


@pytest.mark.parametrize("max_num_tiles", [6, 9, 12, 40, 99, 128])
def test_tags_of_a_model_have_equally_many_tokens(qwen_tokenizer, max_num_tiles: int):
    one_dimensional = layout("1d", True, max_num_tiles)
    grid = layout("2d_grid", True, max_num_tiles)
    numbered = one_dimensional.tags((max_num_tiles, 1))
    assert len(set(qwen_tokenizer.count(numbered))) == 1
    tiles = {tag for shape in candidate_grids(max_num_tiles) for tag in grid.tags(shape)}
    assert len(set(qwen_tokenizer.count(sorted(tiles - {THUMBNAIL})))) == 1


@pytest.mark.parametrize("tile_tags", ["1d", "2d_grid", "2d_box"])
@pytest.mark.parametrize("max_num_tiles", [6, 12])
def test_tags_of_an_image_differ_and_none_begins_another(tile_tags: TileTags, max_num_tiles: int):
    tagger = layout(tile_tags, max_num_tiles=max_num_tiles)
    for grid in candidate_grids(max_num_tiles):
        tags = tagger.tags(grid)
        assert len(tags) == len(set(tags)) == tagger.num_tiles(grid)
        assert not any(a != b and b.startswith(a) for a in tags for b in tags)


def test_tags_of_tiles_that_are_left_out_stand_before_the_next_tile():
    visual = replace(layout("2d_grid"), tiling="pad_skip")
    assert visual.tags((1, 3)) == [
        "<tile_x0_y0>",
        "<tile_x1_y0><tile_x2_y0><tile_x0_y1>",
        "<tile_x1_y1><tile_x2_y1><tile_x0_y2>",
        f"<tile_x1_y2><tile_x2_y2>{THUMBNAIL}",
    ]
    visual = replace(layout("1d", use_thumbnail=False), tiling="pad_skip")
    assert visual.tags((2, 1)) == ["<tile_1>", "<tile_2>"]  # 3 and 4 stand before nothing
    assert visual.tags((2, 2)) == [f"<tile_{n}>" for n in (1, 2, 3, 4)]
    assert [grid for grid in candidate_grids(6) if visual.may_be(grid, 6)] == [
        (1, 1), (1, 2), (2, 1), (2, 2)
    ]  # fmt: skip
