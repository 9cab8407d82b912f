"""The UCI handwritten digits of scikit-learn: 1797 scans of 8 x 8 pixels, split once and for all.

The split is over the scans themselves, so no held-out scan is ever trained on, neither by the demo
nor by the tiny models it starts from.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from demo.photographs import random_crop

# Every sixth scan of the data set is held out. The order of the data set is by writer groups, so
# both splits have all digits and many writers.
HELDOUT_SHARE = 6


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32) / 16.0, data.target.astype(np.int64)


@cache
def scan_numbers(split: str, digit: int) -> np.ndarray:
    """Numbers (places in the data set) of the scans of `digit` in `train` or `heldout`."""
    _, labels = _scans()
    numbers = np.flatnonzero(labels == digit)
    heldout = numbers % HELDOUT_SHARE == 0
    return numbers[heldout if split == "heldout" else ~heldout]


def digit_of(scan: int) -> int:
    """The digit that scan number `scan` shows."""
    return int(_scans()[1][scan])


def ink_mask(scan: int, width: int, height: int, angle: float = 0.0) -> np.ndarray:
    """How much ink is where, [height, width] in 0-1: the scan enlarged and turned by `angle`."""
    pixels = np.pad(_scans()[0][scan], 1) * 255
    image = Image.fromarray(pixels.astype(np.uint8))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if angle:
        image = image.rotate(angle, Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32) / 255


def paper(rng: np.random.Generator, width: int, height: int, split: str) -> np.ndarray:
    """A background, [height, width, 3] float 0-255: plain, shaded, grainy or a faint photograph."""
    tone = rng.uniform(205, 255) + rng.uniform(-12, 12, 3)
    canvas = np.broadcast_to(tone, (height, width, 3)).astype(np.float32).copy()
    kind = int(rng.integers(4))
    if kind == 1:
        canvas += np.linspace(-25, 25, width, dtype=np.float32)[None, :, None]
    elif kind == 2:
        canvas += rng.normal(0, 6, (height, width, 1)).astype(np.float32)
    elif kind == 3:
        texture = random_crop(rng, ["bricks", "grass", "moon"][int(rng.integers(3))], split,
                              width, height)  # fmt: skip
        canvas += (np.asarray(texture, np.float32) - 128) * 0.15
    return np.clip(canvas, 0, 255)


def stamp(
    rng: np.random.Generator, canvas: np.ndarray, scan: int, box: tuple[int, int, int, int]
) -> None:
    """Draw a scan into `canvas` in a dark ink."""
    left, top, right, bottom = box
    area = canvas[top:bottom, left:right]
    ink = rng.uniform(0, 80, 3)
    mask = ink_mask(scan, right - left, bottom - top, float(rng.uniform(-8, 8)))[..., None]
    area += (ink.astype(np.float32) - area) * mask
