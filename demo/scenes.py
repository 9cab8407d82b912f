"""Images of the demo as scenes: first what stands where, then the drawing of it.

The layout is enough to know what each 28-pixel cell of each tile shows. That is how the tiny models
are trained: the vision encoder to name the cells of a drawn scene, the language model to answer
questions about the names.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from demo import digits, photographs, questions
from demo.questions import pick

Generator = np.random.Generator
Box = tuple[float, float, float, float]

TILE = 112
BLANK, SHEET = "blank", "sheet"
# (columns, rows) of the sheets. Each has an aspect ratio that tiling with at most 6 tiles turns
# into this very grid: ties between equal ratios go to more tiles for large images.
SHEET_GRIDS = [(3, 2), (2, 2), (3, 1), (2, 3)]
# A cell shows a thing that covers this share of the cell (or of itself, if it is smaller).
_COVERED_SHARE = 0.3
_FONTS = ["DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf"]


@dataclass(frozen=True)
class Thing:
    """A visual word and the pixels (left, top, right, bottom) it covers."""

    word: str
    box: Box


@dataclass(frozen=True)
class Scene:
    """An image yet to be drawn."""

    width: int
    height: int
    grid: tuple[int, int]  # (columns, rows) of tiles that dynamic tiling gives
    things: tuple[Thing, ...]
    draw: Callable[[], Image.Image]
    # What every cell of the thumbnail shows when its things are too small to be seen in it.
    thumbnail_word: str | None = None

    def words_of_tiles(self) -> list[list[str]]:
        """Words of the cells in row-major order, per tile; the thumbnail last if there is one."""
        columns, rows = self.grid
        tiles = []
        for row in range(rows):
            for column in range(columns):
                scale_x, scale_y = TILE * columns / self.width, TILE * rows / self.height
                tiles.append(self._words_of_cells(scale_x, scale_y, -TILE * column, -TILE * row))
        if columns * rows > 1:
            if self.thumbnail_word is not None:
                tiles.append([self.thumbnail_word] * 16)
            else:
                tiles.append(self._words_of_cells(TILE / self.width, TILE / self.height, 0, 0))
        return tiles

    def _words_of_cells(self, scale_x: float, scale_y: float, dx: float, dy: float) -> list[str]:
        cell = TILE // 4
        words, best = [BLANK] * 16, [0.0] * 16
        for thing in self.things:
            left, right = thing.box[0] * scale_x + dx, thing.box[2] * scale_x + dx
            top, bottom = thing.box[1] * scale_y + dy, thing.box[3] * scale_y + dy
            smaller = min(cell * cell, (right - left) * (bottom - top))
            for row in range(max(0, int(top // cell)), min(4, int(bottom // cell) + 1)):
                for column in range(max(0, int(left // cell)), min(4, int(right // cell) + 1)):
                    x0, y0 = column * cell, row * cell
                    overlap = max(0.0, min(right, x0 + cell) - max(left, x0)) * max(
                        0.0, min(bottom, y0 + cell) - max(top, y0)
                    )
                    is_centre = (
                        x0 <= (left + right) / 2 < x0 + cell
                        and y0 <= (top + bottom) / 2 < y0 + cell
                    )
                    share = max(overlap / smaller, 0.5 * is_centre)
                    if share >= _COVERED_SHARE and share > best[row * 4 + column]:
                        words[row * 4 + column], best[row * 4 + column] = thing.word, share
        return words


def digit_scene(rng: Generator, split: str, digit: int | None = None) -> Scene:
    """One large handwritten digit on one tile."""
    digit = int(rng.integers(10)) if digit is None else digit
    side = int(rng.integers(96, 145))
    box = _random_box(rng, side, side, rng.uniform(0.38, 0.9) * side)
    return _digits_scene(rng, split, side, side, (1, 1), [(digit, box)])


def crowd_scene(rng: Generator, split: str) -> Scene:
    """Four digits on one tile: more to learn from per tile than the demo's own scenes have."""
    placed = []
    half = TILE // 2
    for left, top in ((0, 0), (half, 0), (0, half), (half, half)):
        x0, y0, x1, y1 = _random_box(rng, half, half, rng.uniform(26, 54))
        placed.append((int(rng.integers(10)), (x0 + left, y0 + top, x1 + left, y1 + top)))
    return _digits_scene(rng, split, TILE, TILE, (1, 1), placed)


def sheet_scene(
    rng: Generator, split: str, grid: tuple[int, int], values: Sequence[int] = range(10)
) -> tuple[Scene, list[list[int]]]:
    """A sheet with one small digit of `values` per tile, and the digits by row and column."""
    columns, rows = grid
    shown = np.asarray(values)[rng.integers(len(values), size=(rows, columns))].tolist()
    placed = []
    for row in range(rows):
        for column in range(columns):
            left, top, right, bottom = _random_box(rng, TILE, TILE, rng.uniform(27, 38), margin=5)
            placed.append(
                (shown[row][column], (left + TILE * column, top + TILE * row,
                                      right + TILE * column, bottom + TILE * row))
            )  # fmt: skip
    width, height = TILE * columns, TILE * rows
    return _digits_scene(rng, split, width, height, grid, placed, thumbnail_word=SHEET), shown


def search_scene(rng: Generator, split: str, grid: tuple[int, int]) -> tuple[Scene, int, int]:
    """A sheet with a small digit on one tile and coloured blocks on the others.

    Returns the scene, the digit, and the number of its tile from 0.
    """
    columns, rows = grid
    digit, target = int(rng.integers(10)), int(rng.integers(rows * columns))
    placed, blocks = [], []
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        left, top, right, bottom = _random_box(rng, TILE, TILE, rng.uniform(27, 38), margin=5)
        box = (left + TILE * column, top + TILE * row, right + TILE * column, bottom + TILE * row)
        if number == target:
            placed.append((digit, box))
        else:
            blocks.append((pick(rng, list(questions.COLOURS)), box))
    width, height = TILE * columns, TILE * rows
    scene = _digits_scene(rng, split, width, height, grid, placed, SHEET, blocks)
    return scene, digit, target


def document_scene(rng: Generator) -> tuple[Scene, str]:
    """A small document with one word or a number of two or three digits, and its text."""
    side = int(rng.integers(112, 145))
    scale = side / TILE
    seed = _seed(rng)
    if rng.random() < 0.5:
        text = pick(rng, questions.DOCUMENT_WORDS)
        font = _font(pick(rng, _FONTS), 100)
        left, top, right, bottom = font.getbbox(text)
        width = rng.uniform(0.62, 0.9) * side
        size = min(100 * width / (right - left), 40 * scale)
        factor = size / 100
        text_width, text_height = (right - left) * factor, (bottom - top) * factor
        x, y = rng.uniform(4, side - 4 - text_width), rng.uniform(8, side - 8 - text_height)
        things = [Thing(text, (x, y, x + text_width, y + text_height))]
        letters = [(text, x - left * factor, y - top * factor)]
        face, points = Path(str(font.path)).name, size
    else:
        text = "".join(map(str, rng.integers(10, size=int(rng.integers(2, 4)))))
        pitch = rng.uniform(28, 31) * scale
        face, points = pick(rng, _FONTS), rng.uniform(30, 38) * scale
        x = rng.uniform(0, side - pitch * len(text))
        y = rng.uniform(6, side - 6 - points)
        things, letters = [], []
        for place, letter in enumerate(text):
            centre = x + (place + 0.5) * pitch
            left, top, right, bottom = _font(face, 100).getbbox(letter)
            factor = points / 100
            things.append(
                Thing(
                    questions.DIGIT_NAMES[int(letter)],
                    (centre - 2, y + points / 2 - 2, centre + 2, y + points / 2 + 2),
                )
            )
            letters.append(
                (letter, centre - (left + right) / 2 * factor,
                 y + points / 2 - (top + bottom) / 2 * factor)
            )  # fmt: skip

    def draw() -> Image.Image:
        style = np.random.default_rng(seed)
        image = Image.new("RGB", (side, side), tuple(int(c) for c in style.integers(225, 256, 3)))
        pen = ImageDraw.Draw(image)
        if style.random() < 0.5:
            line = tuple(int(c) for c in style.integers(190, 225, 3))
            for height in range(int(style.integers(8, 24)), side, int(style.integers(18, 40))):
                pen.line((0, height, side, height), fill=line)
        ink = tuple(int(c) for c in style.integers(0, 90, 3))
        for letter, x, y in letters:
            pen.text((x, y), letter, font=_font(face, points), fill=ink)
        return image

    return Scene(side, side, (1, 1), tuple(things), draw), text


def chart_scene(rng: Generator) -> tuple[Scene, list[str], list[int]]:
    """A bar chart of two to four bars of different heights; colours and heights, left to right."""
    side = int(rng.integers(112, 145))
    num_bars = int(rng.integers(2, 5))
    colours = [str(c) for c in rng.permutation(list(questions.COLOURS))[:num_bars]]
    heights = [int(h) for h in rng.permutation([1, 2, 3, 4])[:num_bars]]
    slot, bar_width = 104 / num_bars, 0.8 * min(104 / num_bars, 40)
    scale = side / TILE
    bars = []
    for place, height in enumerate(heights):
        left = 6 + slot * place + (slot - bar_width) / 2
        top = 102 - 23 * height + rng.uniform(-2, 2)
        bars.append((left * scale, top * scale, (left + bar_width) * scale, 102 * scale))
    seed = _seed(rng)

    def draw() -> Image.Image:
        return _draw_bars(np.random.default_rng(seed), side, colours, bars)

    things = tuple(Thing(colour, bar) for colour, bar in zip(colours, bars))
    return Scene(side, side, (1, 1), things, draw), colours, heights


def photo_scene(rng: Generator, split: str) -> tuple[Scene, str]:
    """A crop of a photograph, one tile or two side by side, and its subject."""
    subject = pick(rng, photographs.SUBJECTS)
    columns = 2 if rng.random() < 0.15 else 1
    side = int(rng.integers(112, 145))
    width = side * columns
    seed = _seed(rng)

    def draw() -> Image.Image:
        style = np.random.default_rng(seed)
        crop = photographs.random_crop(style, subject, split, width, side)
        if style.random() < 0.5 and subject != "page":
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        gain, offset = style.uniform(0.85, 1.1), style.uniform(-12, 12)
        return crop.point(lambda value: value * gain + offset)

    things = (Thing(f" {subject}", (0, 0, width, side)),)
    return Scene(width, side, (columns, 1), things, draw), subject


def encode(image: Image.Image, kind: str) -> bytes:
    """File bytes of `image`: `png`, or `jpg` for photographs."""
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", compress_level=3)
    else:
        image.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def _digits_scene(
    rng: Generator,
    split: str,
    width: int,
    height: int,
    grid: tuple[int, int],
    placed: list[tuple[int, Box]],
    thumbnail_word: str | None = None,
    blocks: Sequence[tuple[str, Box]] = (),
) -> Scene:
    scans = [int(pick(rng, digits.scan_numbers(split, digit))) for digit, _ in placed]
    seed = _seed(rng)

    def draw() -> Image.Image:
        style = np.random.default_rng(seed)
        canvas = digits.paper(style, width, height, split)
        for scan, (_, box) in zip(scans, placed):
            left, top, right, bottom = (round(edge) for edge in box)
            digits.stamp(style, canvas, scan, (left, top, right, bottom))
        image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(image)
        for colour, box in blocks:
            pen.rectangle(box, fill=questions.COLOURS[colour])
        return image

    things = tuple(Thing(questions.DIGIT_NAMES[digit], box) for digit, box in placed)
    things += tuple(Thing(colour, box) for colour, box in blocks)
    return Scene(width, height, grid, things, draw, thumbnail_word)


def _random_box(rng: Generator, width: int, height: int, size: float, margin: int = 1) -> Box:
    size = int(size)
    left = int(rng.integers(margin, width - size - margin + 1))
    top = int(rng.integers(margin, height - size - margin + 1))
    return left, top, left + size, top + size


def _seed(rng: Generator) -> int:
    return int(rng.integers(2**31))


@cache
def _font(file: str, size: float) -> ImageFont.FreeTypeFont:
    """A DejaVu font that matplotlib ships."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / file), size)


@cache
def _figure():
    """One matplotlib figure of 1 x 1 inch, used for every chart: building one is slow."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    return figure, canvas, axes


def _draw_bars(rng: Generator, side: int, colours: list[str], bars: list[Box]) -> Image.Image:
    figure, canvas, axes = _figure()
    figure.set_dpi(side)
    axes.clear()
    axes.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])
    axes.set_facecolor(tuple(rng.uniform(0.92, 1.0, 3).tolist()))
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, (left, top, right, bottom) in enumerate(bars):
        axes.bar((left + right) / 2, top - bottom, right - left, bottom,
                 color=questions.COLOURS[colours[place]])  # fmt: skip
        axes.text(
            (left + right) / 2, side - 1, "ABCD"[place], ha="center", va="bottom", fontsize=3.5
        )
    axes.axhline(bars[0][3], color="black", linewidth=0.5)
    if rng.random() < 0.5:
        for level in range(1, 5):
            axes.axhline(bars[0][3] - level * 0.2 * side, color="0.8", linewidth=0.3, zorder=0)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
