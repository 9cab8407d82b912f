"""Rows of tables: which columns are images, and what a row's sample is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvlm.data.importers.records import Picture, Record, find_file, make_record
from nvlm.data.sample import SampleError
from nvlm.errors import DataError

IMAGE_COLUMNS = ("images", "image", "jpg", "png", "picture")
# Columns that tell samples with one id apart.
ID_COLUMNS = ("id", "image_id", "sample_id", "question_id", "uid")


def check_columns(names: list[str], where: Path) -> None:
    """Raise `DataError` when a table has no column that text can come from."""
    known = {
        "messages", "conversations", "conversation", "texts", "caption", "captions", "text",
        "question", "query", "parts", "regions",
    }  # fmt: skip
    if not known & set(names):
        raise DataError(
            f"{where}: none of its columns ({', '.join(names)}) has text; expected one of "
            f"{', '.join(sorted(known))}"
        )


def id_column(names: list[str]) -> str | None:
    return next((name for name in ID_COLUMNS if name in names), None)


def row_to_record(key: str, row: dict[str, Any], folder: Path) -> Record:
    """A row as a record; images are bytes, `{"bytes", "path"}`, or names of files in `folder`."""
    pictures: list[Picture] = []
    for name in IMAGE_COLUMNS:
        if row.get(name) is not None:
            values = row[name] if isinstance(row[name], list) else [row[name]]
            pictures = [_picture(value, folder) for value in values if value is not None]
            break
    fields = {name: value for name, value in row.items() if name not in IMAGE_COLUMNS}
    return make_record(key, fields, pictures)


def _picture(value: Any, folder: Path) -> Picture:
    if isinstance(value, bytes):
        return Picture(value)
    if isinstance(value, str):
        return Picture(None, find_file(folder, value, "image"))
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return Picture(value["bytes"])
        return Picture(None, find_file(folder, value.get("path"), "image"))
    raise SampleError("missing_image", f"an image is {type(value).__name__}, expected bytes")
