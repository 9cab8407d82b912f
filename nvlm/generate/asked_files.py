"""Many questions: one prompt about every image of a folder, or a file of JSON lines.

This file imports no torch.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nvlm.data.samples.image_formats import IMAGE_TYPES, UNREAD_IMAGE_TYPES
from nvlm.data.samples.sample import SampleError
from nvlm.data.samples.text_members import shown
from nvlm.data.shards.regular_files import open_regular_file
from nvlm.errors import DataError
from nvlm.generate.asked import Asked, messages_of_prompt, messages_of_turns
from nvlm.generate.request import Sampling
from nvlm.printing import counted, listed

# What a line may say of how its answer is drawn.
_SAMPLING = tuple(part.name for part in fields(Sampling))
KEYS = ("id", "prompt", "messages", "images", *_SAMPLING)


@dataclass(frozen=True)
class AskedTogether:
    """The questions of one command, in their order."""

    asked: list[Asked]
    # Of a folder: extension -> files that are images which nvlm does not read.
    unread: Mapping[str, int] = field(default_factory=dict)


def asked_of_folder(
    folder: Path, prompt: str, system: str | None, sampling: Sampling
) -> AskedTogether:
    """A prompt about each image below `folder`, sorted by path, which is also the question's id.

    Images are known by the extensions of docs/data_rules.md. Hidden files and folders, and links to
    folders, are passed over.

    Raises:
        DataError: no such folder, no image in it, or the prompt does not fit one image.
    """
    if not folder.is_dir():
        what = "is a file; give its folder" if folder.exists() else "no such folder"
        raise DataError(f"--folder {folder}: {what}")
    messages = messages_of_prompt(prompt, 1, system)
    names: list[str] = []
    unread: Counter[str] = Counter()
    for place, folders, files in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            extension = name.rpartition(".")[2].lower()
            if name.startswith("."):
                continue
            if extension in IMAGE_TYPES:
                names.append(Path(place, name).relative_to(folder).as_posix())
            elif extension in UNREAD_IMAGE_TYPES:
                unread[extension] += 1
    if not names:
        raise DataError(f"--folder {folder}: no image in it, nor in a folder below it")
    asked = [
        Asked(name, (name,), (folder / name,), {"prompt": prompt}, messages, sampling)
        for name in sorted(names)
    ]
    return AskedTogether(asked, dict(unread))


def asked_of_file(path: Path, system: str | None, sampling: Sampling) -> AskedTogether:
    """The questions of a file of JSON lines; empty lines are none.

    A line is an object with `prompt` or `messages`; and, where it likes, `images` (paths relative
    to the file's folder), `id` (else the line's number) and fields of `Sampling`, which then hold
    for it alone. One that cannot be asked comes back with its `problem`.

    Raises:
        DataError: the file cannot be read, or has no line that can be asked; or a line has a key
            that is not known, a value of `Sampling` that is not allowed, or the id of another.
    """
    asked: list[Asked] = []
    line_of: dict[str, int] = {}
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    question = _read_line(path, number, line, system, sampling)
                    key = str(question.id)
                    if key in line_of:
                        raise DataError(
                            f"{path} line {number}: the id {shown(question.id)} is that of line "
                            f"{line_of[key]}, too; give each an id of its own"
                        )
                    line_of[key] = number
                    asked.append(question)
    except OSError as error:
        raise DataError(f"--questions {path}: {error.strerror or error}") from None
    if not asked:
        raise DataError(f"--questions {path}: has no line with a question")
    first = asked[0].problem
    if first is not None and all(question.problem for question in asked):
        raise DataError(
            f"--questions {path}: of {counted(len(asked), 'question')} none can be asked; the "
            f"first is {asked[0].id}: {first.reason}: {first.detail}"
        )
    return AskedTogether(asked)


class _GivenTwice(Exception):
    """Of an object's names one is there twice; what is said is the name."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of a name the last would count, without a word."""
    name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
    if count > 1:
        raise _GivenTwice(shown(name))
    return dict(pairs)


def _read_line(
    path: Path, number: int, line: bytes, system: str | None, sampling: Sampling
) -> Asked:
    try:
        value = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_each_once)
    except _GivenTwice as error:
        raise DataError(f"{path} line {number}: {error} is given twice") from None
    except (ValueError, RecursionError) as error:
        return _unreadable(number, SampleError("json", f"not readable as JSON: {error}"))
    if not isinstance(value, dict):
        detail = f"expected an object with a prompt, found {shown(value)}"
        return _unreadable(number, SampleError("json", detail))
    unknown = [name for name in value if name not in KEYS]
    if unknown:
        raise DataError(
            f"{path} line {number}: {listed(map(shown, unknown), 5)} is not read; a line has "
            f"{', '.join(KEYS)}"
        )
    own = {name: value[name] for name in _SAMPLING if name in value}
    changed = _changed(sampling, own, f"{path} line {number}")
    identity = value.get("id", number)
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise DataError(
            f"{path} line {number}: id is {shown(identity)}, expected a text or a whole number"
        )
    words = {name: value[name] for name in ("prompt", "messages") if name in value}
    question = Asked(identity, (), (), words, sampling=changed, own_sampling=own)
    try:
        return _with_words(question, value.get("images", []), path.parent, system)
    except SampleError as error:
        return replace(question, problem=error)


def _with_words(question: Asked, images: Any, folder: Path, system: str | None) -> Asked:
    """Raises `SampleError` where it cannot be asked."""
    names = [images] if isinstance(images, str) else images
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.strip() and "\0" not in name for name in names
    ):
        raise SampleError("images", f"images is {shown(images)}, expected a list of paths")
    if len(question.words) != 1:
        found = "both" if question.words else "neither"
        raise SampleError("fields", f"expected prompt or messages, found {found}")
    words = question.words
    if "prompt" in words:
        messages = messages_of_prompt(words["prompt"], len(names), system, "prompt")
    else:
        messages = messages_of_turns(words["messages"], len(names), system)
    paths = tuple(folder / name for name in names)
    return replace(question, images=tuple(names), paths=paths, messages=messages)


def _unreadable(number: int, problem: SampleError) -> Asked:
    return Asked(number, (), (), {}, problem=problem)


def _changed(sampling: Sampling, own: Mapping[str, Any], where: str) -> Sampling:
    """With what a line says itself."""
    values = dict(own)
    if isinstance(stop := own.get("stop"), str | list):
        values["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    try:
        return replace(sampling, **values)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _cannot_list(error: OSError) -> None:
    raise DataError(f"--folder {error.filename}: cannot be read: {error.strerror}")
