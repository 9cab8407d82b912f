"""Images that a sample names or holds where nothing reads them: refused, never lost in silence."""

from __future__ import annotations

import re
from pathlib import Path

from nvlm.data.samples.image_formats import IMAGE_TYPES
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.importers.fields import Fields
from nvlm.importers.image_files import FileFolder, find_file
from nvlm.importers.pictures import Picture, bytes_of, is_image, same_picture
from nvlm.importers.spellings import ANNOTATIONS

_MARKDOWN = re.compile(r"!\[[^\]]*\]\(\s*<?([^)\s>]+)")


def check_unread(fields: Fields, folder: FileFolder | None, pictures: list[Picture]) -> None:
    """Raise `SampleError` if a field that is left names or holds an image that is not used.

    Args:
        pictures: those that are used.
    """
    for name in fields:
        value, where = fields.look(name), fields.name(name)
        if ANNOTATIONS.fullmatch(name) and pictures:
            continue
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and _is_file_name(item):
                if not pictures or _is_another_file(item, folder, pictures):
                    have = "beside its images" if pictures else "no image"
                    raise SampleError(
                        "missing_image",
                        f"{have}, but its field {where} is {shown(item)}; rename the field to "
                        "image, or remove it",
                    )
            elif is_image(item) or (not pictures and bytes_of(item)):
                raise SampleError(
                    "fields" if pictures else "image_format",
                    f"its field {where} holds bytes, which are not read; where they are an image, "
                    "rename the field to image, else remove it",
                )


def refuse_named_files(text: str, where: str, folder: FileFolder | None) -> None:
    """Raise `SampleError` if Markdown in a text shows an image that is there."""
    if folder is None or "![" not in text:
        return
    for name in _MARKDOWN.findall(text):
        if _is_file_name(name) and _is_another_file(name, folder, []):
            raise SampleError(
                "image_mark",
                f"{where} shows {shown(name)} as Markdown; name it in a field images, and write "
                "<image> in its place",
            )


def _is_file_name(text: str) -> bool:
    name = text[-20:]
    return "://" not in text and Path(name).suffix[1:].lower() in IMAGE_TYPES and len(text) < 4096


def _is_another_file(name: str, folder: FileFolder | None, pictures: list[Picture]) -> bool:
    if folder is None:
        return False
    try:
        path = find_file(folder, name, "image")
    except SampleError:
        return False
    return not any(same_picture(Picture(None, path), picture) for picture in pictures)
