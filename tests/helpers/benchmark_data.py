"""Folders of published benchmarks in small, in the files' own formats."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_LETTER = "Please answer directly with only the letter of the correct option and nothing else."
_WORD = "Please answer directly with a single word or number."


def picture(number: int, width: int = 48, height: int = 48) -> bytes:
    """A PNG of its own for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_realworldqa(
    data: Path, num_rows: int = 6, damaged: Sequence[int] = (), question: str | None = None
) -> Path:
    """`data/realworldqa` in two parquet files as on the hub; pictures of `damaged` rows are cut."""
    folder = data / "realworldqa" / "data"
    folder.mkdir(parents=True)
    rows = []
    for number in range(num_rows):
        content = picture(number, 40 + 8 * (number % 3), 48)
        rows.append(
            {
                "image": {
                    "bytes": content[: len(content) // 2] if number in damaged else content,
                    "path": f"{number}.png",
                },
                "question": question
                or (
                    f"Which way is car {number}?\n\nA. Left\nB. Right\n{_LETTER}"
                    if number % 2
                    else f"How many cars are in picture {number}?\n{_WORD}"
                ),
                "answer": "AB"[number % 4 // 2] if number % 2 else str(number),
            }
        )
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answer", pa.string())])
    half = (num_rows + 1) // 2
    for number, part in enumerate((rows[:half], rows[half:])):
        table = pa.Table.from_pylist(part, schema)
        pq.write_table(table, folder / f"test-0000{number}-of-00002.parquet", row_group_size=2)
    return data
