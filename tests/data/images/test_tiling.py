"""Tiling against published values, and against a slow restatement of the published algorithm."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from helpers.shard_writing import draw_image
from PIL import Image

from nvlm.data.images.image import decode_image
from nvlm.data.images.tiling import PADDING_RGB, candidate_grids, choose_grid, cut_tiles
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


def padded_by_hand(pixels: np.ndarray, side: int, size: int) -> np.ndarray:
    """The square of `side` x `side` tiles, from Pillow's own `thumbnail`-like arithmetic."""
    height, width, _ = pixels.shape
    scale = Fraction(side * size, max(width, height))
    new = [max(1, int(length * scale + Fraction(1, 2))) for length in (width, height)]
    canvas = Image.new("RGB", (side * size, side * size), PADDING_RGB)
    canvas.paste(Image.fromarray(pixels).resize((new[0], new[1]), Image.Resampling.BICUBIC))
    return np.asarray(canvas)


@pytest.mark.parametrize("size", [(300, 200), (200, 451), (90, 30), (31, 400), (224, 224)])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_padded_tiles_are_a_pasted_image_and_skipped_ones_hold_padding_alone(
    size: tuple[int, int], side: int
):
    pixels = decode_image(draw_image(*size))
    square = padded_by_hand(pixels, side, 112)
    thumbnail = padded_by_hand(pixels, 1, 112).transpose(2, 0, 1)
    # [rows, columns, 3, size, size]
    expected = square.reshape(side, 112, side, 112, 3).transpose(0, 2, 4, 1, 3)
    limit = (side + 1) ** 2 - 1  # the largest square of at most so many
    tiles = cut_tiles(pixels, limit, True, 112, tiling="pad")
    assert choose_grid(*size, limit, 112, "pad") == (side, side)
    assert np.array_equal(tiles[: side**2], expected.reshape(-1, 3, 112, 112))
    kept = cut_tiles(pixels, limit, True, 112, tiling="pad_skip")
    columns, rows = choose_grid(*size, limit, 112, "pad_skip")
    assert max(columns, rows) == side
    assert np.array_equal(
        kept[: columns * rows], expected[:rows, :columns].reshape(-1, 3, 112, 112)
    )
    if side > 1:
        assert len(tiles) == side**2 + 1 and len(kept) == columns * rows + 1
        assert np.array_equal(tiles[-1], thumbnail) and np.array_equal(kept[-1], thumbnail)
    padding = np.array(PADDING_RGB)[:, None, None]
    is_padding = (expected == padding).all((2, 3, 4))
    assert (is_padding == ~np.pad(
        np.ones((rows, columns), bool), ((0, side - rows), (0, side - columns))
    )).all()  # fmt: skip


def test_frames_of_a_video_are_one_tile_however_images_are_cut():
    for tiling in ("stretch", "pad", "pad_skip"):
        assert choose_grid(1, 1, 9, 112, tiling) == (1, 1)
