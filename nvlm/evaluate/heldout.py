"""Held-out samples: read from shards as questions with a truth, and written out as plain files.

Reads tar files directly: nothing of training's order, packing or torch is needed, so that the
Hugging Face client can share the written folder without importing any of it.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nvlm.errors import DataError

SAMPLES_FILE = "samples.jsonl"
IMAGE_MARK = "<image>"
_IMAGE_TYPES = ("png", "jpg", "jpeg", "webp")


@dataclass(frozen=True)
class Question:
    """One sample up to its last assistant turn, which is the truth."""

    sample_id: str
    source: str
    task: str
    messages: list[dict[str, str]]  # up to and including the last user turn
    truth: str
    images: list[bytes] = field(repr=False, default_factory=list)  # encoded, in order of use
    image_types: list[str] = field(default_factory=list)  # file extensions, aligned with images

    @property
    def text(self) -> str:
        """The last user turn without image marks, for people to read."""
        return self.messages[-1]["content"].replace(IMAGE_MARK, "").strip()


def read_questions(data_root: Path, split: str, limit_per_task: int | None) -> list[Question]:
    """Questions of `data_root/split`, in order of source, shard and position, the same every time.

    Of a task with more than `limit_per_task` samples, that many are taken at even distances.

    Raises:
        DataError: there are no shards, a shard is not a tar file, or a sample is not of the form
            that `nvlm data build-demo` writes.
    """
    by_task: dict[str, list[tuple[int, Question]]] = {}
    for position, question in enumerate(_read_split(Path(data_root) / split)):
        by_task.setdefault(question.task, []).append((position, question))
    chosen = [member for members in by_task.values() for member in _evenly(members, limit_per_task)]
    return [question for _, question in sorted(chosen, key=lambda member: member[0])]


def write_questions(questions: Sequence[Question], folder: Path) -> Path:
    """Write `folder/samples.jsonl` and the images beside it; replaces what was there.

    A line has sample_id, source, task, messages, truth and images (paths relative to `folder`).
    """
    folder = Path(folder)
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "images").mkdir(parents=True)
    with (beside / SAMPLES_FILE).open("w") as file:
        for number, question in enumerate(questions):
            names = []
            for index, (data, kind) in enumerate(zip(question.images, question.image_types)):
                names.append(f"images/{number:05d}.{index}.{kind}")
                (beside / names[-1]).write_bytes(data)
            line = asdict(question) | {"images": names}
            del line["image_types"]
            file.write(json.dumps(line) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def _evenly(members: list, limit: int | None) -> list:
    if limit is None or len(members) <= limit:
        return members
    return [members[index * len(members) // limit] for index in range(limit)]


def _read_split(folder: Path) -> Iterator[Question]:
    shards = sorted(folder.glob("*.tar")) + sorted(folder.glob("*/*.tar"))
    if not shards:
        raise DataError(
            f"{folder}: no .tar files there or one folder below; "
            f"`nvlm data build-demo {folder.parent}` makes some"
        )
    for shard in shards:
        source = shard.parent.name
        try:
            for key, members in _read_samples(shard):
                yield _to_question(shard, source, key, members)
        except tarfile.TarError as error:
            raise DataError(f"{shard}: not readable as a tar file: {error}") from None


def _read_samples(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members of each sample by extension; the key is a member's name up to the first dot."""
    key, members = None, {}
    with tarfile.open(shard) as tar:
        for entry in tar:
            if not entry.isfile():
                continue
            folder, slash, name = entry.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if folder + slash + stem != key:
                if key is not None:
                    yield key, members
                key, members = folder + slash + stem, {}
            members[extension.lower()] = tar.extractfile(entry).read()  # type: ignore[union-attr]
    if key is not None:
        yield key, members


def _to_question(shard: Path, source: str, key: str, members: dict[str, bytes]) -> Question:
    where = f"{shard}: sample {key}"
    if "json" not in members:
        raise DataError(f"{where}: has no .json member, found {sorted(members)}")
    try:
        content = json.loads(members["json"])
        messages = [{"role": m["role"], "content": m["content"]} for m in content["messages"]]
        task = content["task"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: the JSON must have messages (role, content) and task: {error!r}"
        ) from None
    if len(messages) < 2 or [m["role"] for m in messages[-2:]] != ["user", "assistant"]:
        raise DataError(f"{where}: must end in a user turn and an assistant turn")
    extensions = [name for name in members if name.rpartition(".")[2] in _IMAGE_TYPES]
    if not all(name.split(".")[0].isdigit() for name in extensions if "." in name):
        raise DataError(
            f"{where}: images must be named KEY.0.png, KEY.1.png, ..., found {extensions}"
        )
    extensions.sort(key=lambda name: int(name.split(".")[0]) if "." in name else 0)
    num_marks = sum(m["content"].count(IMAGE_MARK) for m in messages[:-1] if m["role"] == "user")
    if num_marks != len(extensions):
        raise DataError(f"{where}: {num_marks} {IMAGE_MARK} marks for {len(extensions)} images")
    return Question(
        sample_id=key,
        source=source,
        task=task,
        messages=messages[:-1],
        truth=messages[-1]["content"],
        images=[members[name] for name in extensions],
        image_types=[name.rpartition(".")[2] for name in extensions],
    )
