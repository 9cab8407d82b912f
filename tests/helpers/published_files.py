"""Small files in the forms in which benchmarks are published, with pictures drawn here."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Benchmark, Item
from nvlm.evaluate.suite.scores import item_fields, item_of

Row = Mapping[str, Any]
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@cache
def picture(number: int) -> bytes:
    """A PNG that tells its number."""
    image = Image.new("RGB", (24, 16), (number * 20 % 256, 90, 160))
    ImageDraw.Draw(image).text((2, 2), str(number), fill="white")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path, rows: Sequence[Row], image_columns: Sequence[str] = ("image",)
) -> Path:
    """As Hugging Face's `datasets` writes: numbers in image columns become those pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, pa.Array] = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name in image_columns:
            cells = [None if n is None else {"bytes": picture(n), "path": None} for n in values]
            columns[name] = pa.array(cells, _IMAGE)
        else:
            columns[name] = pa.array(values)
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    """The first name's picture is number 0, and so on."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def write_tsv(path: Path, rows: Sequence[Row]) -> Path:
    """As VLMEvalKit has them: numbers in `image` become pictures, texts are left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        for row in rows:
            cell = row["image"]
            if isinstance(cell, int):
                cell = base64.b64encode(picture(cell)).decode()
            writer.writerow({**row, "image": cell})
    return path


def read_all(benchmark: Benchmark, folder: Path, split: str = "") -> list[Item]:
    return list(benchmark.read(folder, split or benchmark.splits[0]))


def problem_of(benchmark: Benchmark, folder: Path, split: str = "") -> str:
    """What reading `folder` says is wrong."""
    try:
        read_all(benchmark, folder, split)
    except DataError as error:
        return str(error)
    raise AssertionError("nothing was said to be wrong")


def kept(item: Item) -> Item:
    """An item as scores know it later: from the row of its answer, without its pictures."""
    return item_of(json.loads(json.dumps(item_fields(item))))


def pictures_of(item: Item) -> list[bytes]:
    return [source() for source in item.images]
