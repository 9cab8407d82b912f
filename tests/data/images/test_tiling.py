"""Tiling against published values, and against a slow restatement of the published algorithm."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from helpers.shard_writing import draw_image
from PIL import Image

from nvlm.data.images.image import decode_image
from nvlm.data.images.tiling import candidate_grids, choose_grid, cut_tiles
from nvlm.sizes.visual import VisualLayout

# (width, height) -> (columns, rows) and tiles with the thumbnail, at up to 6 tiles of 448 pixels:
# what InternVL's `dynamic_preprocess` gives.
GOLDEN = {
    (448, 448): ((1, 1), 1),
    (600, 600): ((1, 1), 1),
    (633, 633): ((1, 1), 1),
    (634, 634): ((2, 2), 5),
    (1000, 1000): ((2, 2), 5),
    (896, 448): ((2, 1), 3),
    (1920, 1080): ((2, 1), 3),
    (1080, 1920): ((1, 2), 3),
    (640, 480): ((3, 2), 7),
    (300, 2000): ((1, 6), 7),
}


@pytest.mark.parametrize(("size", "expected"), GOLDEN.items())
def test_golden_grids(size: tuple[int, int], expected: tuple[tuple[int, int], int]):
    grid, num_tiles = expected
    assert choose_grid(*size, max_num_tiles=6, image_size=448) == grid
    assert VisualLayout("1d", True, 6, 448, num_tokens_per_tile=256).num_tiles(grid) == num_tiles


def test_candidate_grids():
    assert set(candidate_grids(6)) == {
        (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2),
        (4, 1), (1, 5), (5, 1), (1, 6), (2, 3), (3, 2), (6, 1),
    }  # fmt: skip
    assert len(candidate_grids(12)) == 35


@pytest.mark.parametrize("max_num_tiles", [1, 3, 6, 12])
def test_grid_is_the_closest_ratio_and_large_only_for_large_images(max_num_tiles: int):
    for width, height in np.random.default_rng(0).integers(1, 1500, (300, 2)).tolist():
        columns, rows = choose_grid(width, height, max_num_tiles, 112)
        ratio = Fraction(width, height)
        closest = min(abs(ratio - Fraction(c, r)) for c, r in candidate_grids(max_num_tiles))
        assert abs(ratio - Fraction(columns, rows)) == closest
        # Among equally close grids: the largest whose half area the image exceeds, else the first.
        equal = [
            g for g in candidate_grids(max_num_tiles) if Fraction(*g) == Fraction(columns, rows)
        ]
        large = [g for g in equal[1:] if width * height > 0.5 * 112 * 112 * g[0] * g[1]]
        assert (columns, rows) == (large[-1] if large else equal[0])


def test_tiles_are_crops_of_the_resized_image_row_by_row_then_the_thumbnail():
    pixels = decode_image(draw_image(640, 480))
    image = Image.fromarray(pixels)
    tiles = cut_tiles(pixels, max_num_tiles=6, use_thumbnail=True, image_size=112)
    assert tiles.shape == (7, 3, 112, 112)
    assert tiles.dtype == np.uint8
    resized = image.resize((3 * 112, 2 * 112), Image.Resampling.BICUBIC)
    for number in range(6):
        left, top = number % 3 * 112, number // 3 * 112
        crop = np.asarray(resized.crop((left, top, left + 112, top + 112))).transpose(2, 0, 1)
        assert np.array_equal(tiles[number], crop)
    thumbnail = np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(tiles[6], thumbnail)
    assert len(cut_tiles(pixels, 6, False, 112)) == 6


@pytest.mark.parametrize("resize", ["fast", "exact"])
def test_one_tile_is_the_squashed_image_without_thumbnail(resize: str):
    pixels = decode_image(draw_image(640, 480))
    tiles = cut_tiles(pixels, 1, True, 112, resize)
    thumbnail = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC)
    expected = np.asarray(thumbnail).transpose(2, 0, 1)[None]
    assert tiles.shape == expected.shape
    assert np.abs(tiles.astype(int) - expected).max() <= (2 if resize == "fast" else 0)
