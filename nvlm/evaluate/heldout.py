"""Held-out samples as questions with a truth, and written out as plain files.

The written folder is what Megatron's evaluation, the Hugging Face client and the report share: the
client reads it without importing anything of training. This file imports no torch.
"""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from nvlm.data.sample import IMAGE_MARK, Messages, iterate_samples
from nvlm.errors import DataError

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Question:
    """One sample up to its last assistant turn, which is the truth."""

    sample_id: str
    source: str
    task: str
    messages: Messages  # up to and including the last user turn
    truth: str
    images: list[bytes] = field(repr=False, default_factory=list)  # encoded, in order of use

    @property
    def text(self) -> str:
        """The last user turn without image marks, for people to read."""
        return self.messages[-1]["content"].replace(IMAGE_MARK, "").strip()


def read_questions(data_root: Path, split: str, limit_per_task: int | None) -> list[Question]:
    """Questions of `data_root/split`, in order of source, shard and position, the same every time.

    Of a task with more than `limit_per_task` samples, those whose ids have the lowest CRC-32 are
    taken: a choice that is fixed, and blind to any pattern in the order.

    Raises:
        DataError: there are no shards, or a shard or sample is broken or names no task.
    """
    by_task: dict[str, list[tuple[int, Question]]] = {}
    for position, question in enumerate(_read_split(Path(data_root) / split)):
        by_task.setdefault(question.task, []).append((position, question))
    chosen = [member for members in by_task.values() for member in _choose(members, limit_per_task)]
    return [question for _, question in sorted(chosen, key=lambda member: member[0])]


def write_questions(questions: Sequence[Question], folder: Path) -> Path:
    """Write `folder/samples.jsonl` and the images beside it; replaces what was there.

    A line has sample_id, source, task, messages, truth and images (paths relative to `folder`).
    """
    folder = Path(folder)
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "images").mkdir(parents=True)
    with (beside / SAMPLES_FILE).open("w", encoding="utf-8") as file:
        for number, question in enumerate(questions):
            names = []
            for index, data in enumerate(question.images):
                names.append(f"images/{number:05d}.{index}.{_image_type(data)}")
                (beside / names[-1]).write_bytes(data)
            line = {
                "sample_id": question.sample_id,
                "source": question.source,
                "task": question.task,
                "messages": question.messages,
                "truth": question.truth,
                "images": names,
            }
            file.write(json.dumps(line) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def _choose(members: list[tuple[int, Question]], limit: int | None) -> list[tuple[int, Question]]:
    def lot(member: tuple[int, Question]) -> tuple[int, int]:
        return zlib.crc32(member[1].sample_id.encode()), member[0]

    return members if limit is None else sorted(members, key=lot)[:limit]


def _image_type(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return str(image.format).lower()


def _read_split(folder: Path) -> Iterator[Question]:
    shards = sorted(folder.glob("*.tar")) + sorted(folder.glob("*/*.tar"))
    if not shards:
        raise DataError(
            f"{folder}: no .tar files there or one folder below; "
            f"`nvlm data build-demo {folder.parent}` makes some"
        )
    for shard in shards:
        for key, messages, task, images in iterate_samples([shard]):
            if not task:
                raise DataError(f"{shard}: sample {key}: evaluation needs a task in its JSON")
            if [message["role"] for message in messages[-2:]] != ["user", "assistant"]:
                raise DataError(
                    f"{shard}: sample {key}: evaluation needs a user turn and an assistant turn "
                    f"at the end"
                )
            *turns, answer = messages
            yield Question(key, shard.parent.name, task, turns, answer["content"], images)
