"""Image file to tiles, one core: nvlm against the straightforward public way, in one run.

    python benchmarks/images.py [--rounds N]

Prints per kind of image the median processor time of each way (one thread), its ratio to the
straightforward way (higher is faster) and to the fastest decoding alone (1 is the physical floor),
and the largest and mean difference of its pixels from that way's, in steps of 1/255.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table
from skimage import data as photographs
from sklearn.datasets import load_sample_images

from nvlm.data.images.image import decode_image, read_image_size
from nvlm.data.images.tiling import choose_grid, cut_tiles

TILE = 448
MAX_NUM_TILES = 6
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "immunohistochemistry", "retina")
WORDS = ["invoice", "total", "page", "amount", "of", "table", "figure", "shows", "order", "date"]


def straightforward(file: bytes) -> torch.Tensor:
    """[n, 3, 448, 448] fp32: Pillow for everything, each tile cropped and normalised by itself."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    columns, rows = choose_grid(*image.size, MAX_NUM_TILES, TILE)
    resized = image.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    corners = [(x * TILE, y * TILE) for y in range(rows) for x in range(columns)]
    tiles = [resized.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    if len(tiles) > 1:
        tiles.append(image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    as_tensors = [torch.from_numpy(np.array(tile)).permute(2, 0, 1).float() / 255 for tile in tiles]
    return torch.stack([(tensor - MEAN) / STD for tensor in as_tensors])


def pillow_decode_torch_resize(file: bytes) -> np.ndarray:
    pixels = np.array(Image.open(io.BytesIO(file)).convert("RGB"))
    return cut_tiles(pixels, MAX_NUM_TILES, True, TILE, "fast")


WAYS: dict[str, Callable[[bytes], object]] = {
    "straightforward (Pillow, fp32)": straightforward,
    "nvlm, image_resize: fast": lambda f: cut_tiles(
        decode_image(f), MAX_NUM_TILES, True, TILE, "fast"
    ),
    "nvlm, image_resize: exact": lambda f: cut_tiles(
        decode_image(f), MAX_NUM_TILES, True, TILE, "exact"
    ),
    "Pillow decoding, nvlm's resizing": pillow_decode_torch_resize,
    "decoding only, nvlm": decode_image,
    "decoding only, Pillow": lambda f: np.asarray(Image.open(io.BytesIO(f)).convert("RGB")),
    "header only": lambda f: read_image_size(f[: 1 << 16]),
}


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Photographs of scikit-image and scikit-learn side by side, at their own resolution."""
    random = np.random.default_rng(seed)
    sources = [getattr(photographs, name)() for name in NAMES] + load_sample_images().images
    canvas = Image.new("RGB", (width, height))
    y = 0
    while y < height:
        x = row_height = 0
        while x < width:
            piece = Image.fromarray(sources[random.integers(len(sources))])
            canvas.paste(piece, (x, y))
            row_height = row_height or piece.height
            x += piece.width
        y += row_height
    return canvas


def page(width: int, height: int, seed: int) -> Image.Image:
    """A page of text with a table and a small photograph."""
    random = np.random.default_rng(seed)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(20)
    for y in range(100, height - 420, 30):
        draw.text((90, y), " ".join(random.choice(WORDS, 16)), (25, 25, 30), font)
    for row in range(8):
        y = height - 380 + 38 * row
        draw.line((90, y, 700, y), (120, 120, 120), 2)
        for column in range(4):
            draw.text((100 + 150 * column, y + 8), str(random.integers(10**6)), "black", font)
    canvas.paste(photograph(380, 300, seed), (760, height - 380))
    return canvas


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def make_files() -> dict[str, list[bytes]]:
    return {
        "photograph 1600x1200 JPEG": [
            encoded(photograph(1600, 1200, seed), "JPEG", quality=90) for seed in range(3)
        ],
        "page 1240x1754 PNG": [encoded(page(1240, 1754, seed), "PNG") for seed in range(3)],
        "photograph 4000x3000 JPEG": [
            encoded(photograph(4000, 3000, seed), "JPEG", quality=90) for seed in range(2)
        ],
        "icon 448x448 PNG": [encoded(photograph(448, 448, seed), "PNG") for seed in range(3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    table = Table(
        "image", "way", "ms", "x straightforward", "x decoding", "max diff", "mean diff", box=None
    )
    for kind, files in make_files().items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for file in files:
                for way, run in WAYS.items():
                    start = time.process_time()
                    run(file)
                    times[way].append(time.process_time() - start)
        medians = {way: 1000 * statistics.median(values) for way, values in times.items()}
        floor = min(medians["decoding only, nvlm"], medians["decoding only, Pillow"])
        for way, run in WAYS.items():
            largest, mean = difference(run, files)
            table.add_row(
                kind,
                way,
                f"{medians[way]:.2f}",
                f"{medians['straightforward (Pillow, fp32)'] / medians[way]:.2f}",
                f"{medians[way] / floor:.2f}",
                largest,
                mean,
            )
            kind = ""
        table.add_section()
    Console(width=140).print(table)


def difference(run: Callable[[bytes], object], files: list[bytes]) -> tuple[str, str]:
    """Largest and mean difference from the straightforward way's pixels; blank without tiles."""
    differences = []
    for file in files:
        tiles = run(file)
        if not isinstance(tiles, np.ndarray) or tiles.ndim != 4:
            return "", ""
        expected = ((straightforward(file) * STD + MEAN) * 255).round().numpy()
        differences.append(np.abs(tiles - expected))
    return f"{max(d.max() for d in differences):.0f}", f"{max(d.mean() for d in differences):.4f}"


if __name__ == "__main__":
    main()
