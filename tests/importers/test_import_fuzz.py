"""Drawn samples in every format: whatever they are, each is written whole or rejected by name."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.shard_writing import draw_image, write_shard

from nvlm.data.samples.kinds import SampleParser
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ShardReader, scan_shard
from nvlm.errors import DataError
from nvlm.importers import spellings
from nvlm.importers.fields import is_nothing
from nvlm.importers.formats import ImportOptions
from nvlm.importers.image_files import FileFolder
from nvlm.importers.records import make_record
from nvlm.importers.run import import_source

IMAGE = draw_image(20, 20, 1, "JPEG")
NAMES = [
    *spellings.MEANINGS, *spellings.REFUSED, *spellings.IMAGES, *spellings.VIDEOS,
    *spellings.ID_FIELDS, "A", "B", "C", "option_a", "option_b", "image_1", "image_2", "kind",
    "task", "source", "meta", "Weird Name", "\x1b[2J", "é", "", "x" * 190,
]  # fmt: skip
TURN_NAMES = [
    *spellings.ROLE_FIELDS, *spellings.CONTENT_FIELDS, *spellings.TURN_TRAINED, "name", "images",
    "tool_calls", "function_call", "tool_call_id", "reasoning_content", "other",
]  # fmt: skip
ODD = [
    None, "", " ", 0, 1, -1, 0.5, True, False, 1e308, -1e308, float("nan"), float("inf"), 2**70,
    10**300, "<image>", "<image_1>", "<img>a.jpg</img>", "<|audio|>", "<video>", "a.jpg",
    "gone.jpg", "../a.jpg", "/etc/passwd", "http://a.b/c.jpg", "data:image/png;base64,AAAA",
    "data:", "[", "{}",
    '["a.jpg"]', "\0", "\ud800", "\x1b[31m", "a\u202eb", "A", "B", [], {}, [[]], [None], [[["x"]]],
]  # fmt: skip


class Drawing:
    """Random values. Plain words are numbered, so that each can be found again."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.num_words = 0

    def word(self) -> str:
        self.num_words += 1
        return f"wörd{self.num_words}."

    def value(self, depth: int = 0) -> Any:
        kind = self.random.random()
        if kind < 0.45:
            return self.word()
        if kind < 0.7 or depth > 3:
            return self.random.choice(ODD)
        if kind < 0.85:
            return [self.value(depth + 1) for _ in range(self.random.randrange(4))]
        if kind < 0.87:
            return self.deep(self.random.choice((5, 100, 400)))
        return {self.random.choice(NAMES): self.value(depth + 1) for _ in range(3)}

    def deep(self, depth: int) -> Any:
        value: Any = self.word()
        for _ in range(depth):
            value = [value] if self.random.random() < 0.5 else {"a": value}
        return value

    def part(self) -> Any:
        kind = self.random.choice(("text", "text", "image", "image_url", "video", "audio", "?"))
        part = {"type": kind, kind: self.random.choice((self.word(), "a.jpg", self.value(2)))}
        if self.random.random() < 0.3:
            part[self.random.choice(("index", "detail", "cache", "text"))] = self.value(3)
        return part

    def turn(self, role: str) -> Any:
        if self.random.random() < 0.02:
            return self.value()
        names = self.random.choice((("role", "content"), ("from", "value")))
        content: Any = self.word()
        if self.random.random() < 0.2:
            content = [self.part() for _ in range(self.random.randrange(1, 4))]
        turn = {names[0]: role, names[1]: content}
        if self.random.random() < 0.25:
            turn[self.random.choice(TURN_NAMES)] = self.value(2)
        return turn

    def sample(self) -> dict[str, Any]:
        """Mostly something that can be used, with something odd about it."""
        draw = self.random.random
        kind = self.random.randrange(6)
        if kind < 2:
            turns = [self.turn(("user", "assistant")[i % 2]) for i in range(2 * (1 + kind))]
            sample: dict[str, Any] = {self.random.choice(("messages", "conversations")): turns}
        elif kind == 2:
            names = self.random.choice((("question", "answer"), ("prompt", "response")))
            sample = {name: self.word() for name in names}
        elif kind == 3:
            sample = {"question": self.word(), "options": [self.word(), self.word()], "answer": "B"}
        elif kind == 4:
            sample = {"caption": self.word(), "image": "a.jpg"}
        else:
            sample = {"text": self.word()}
        if draw() < 0.3:
            sample["image"] = "a.jpg"
        for _ in range(self.random.choice((0, 0, 1, 1, 2, 4))):
            sample[self.random.choice(NAMES)] = self.value()
        return sample


def words_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from re.findall(r"wörd\d+\.", value)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from words_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from words_of(item)


def lost_words(sample: dict[str, Any], content: Any, unused: tuple[str, ...]) -> Iterator[str]:
    """Words that neither the stored sample has nor a listed field of theirs."""
    found = set(words_of(content))
    for name in unused:
        found |= set(words_of(sample.get(name)))
        *place, last = name.split(".")
        if place:
            found |= set(words_under(sample.get(place[0]), last))
    for name, value in sample.items():
        # Ids become keys.
        if not is_nothing(value) and spellings.plain(name) not in spellings.ID_FIELDS:
            yield from (f"{name}: {word}" for word in words_of(value) if word not in found)


def words_under(value: Any, name: str) -> Iterator[str]:
    """The words in fields of this name, at any depth."""
    if not isinstance(value, (dict, list)):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from words_of(item) if key == name else words_under(item, name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.jpg").write_bytes(IMAGE)
    return tmp_path / "files"


@pytest.mark.parametrize("seed", range(2))
def test_every_word_is_stored_listed_or_its_sample_rejected(folder: Path, seed: int):
    drawing = Drawing(seed)
    num_used = 0
    for _ in range(2500):
        sample = drawing.sample()
        try:
            record = make_record("key", sample, [], folder=FileFolder(folder))
        except SampleError:
            continue
        num_used += 1
        content = json.loads(record.members["json"])
        lost = list(lost_words(sample, content, record.unused))
        assert lost == [], (sample, content, record.unused)
    assert 600 < num_used < 2000


def write_table(samples: list[dict[str, Any]], path: Path) -> Path:
    """Columns of JSON text, as many tables have what has no type, and of plain values."""
    names = sorted({name for sample in samples for name in sample})
    columns: dict[str, Any] = {"image": [{"bytes": IMAGE, "path": "a.jpg"}] * len(samples)}
    for name in names:
        values = [sample.get(name) for sample in samples]
        try:
            # Deeper types can be made, and not be written.
            if any(json.dumps(value).count("[") > 20 for value in values):
                raise ValueError("too deep")
            columns[name] = pa.array(values)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, ValueError, TypeError):
            texts = [None if v is None else json.dumps(v) for v in values]
            columns[name] = pa.array(texts, pa.string())
    table = pa.table({name: column for name, column in columns.items() if name})
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        datasets.Dataset(table).save_to_disk(str(path))
    return path


def write_source(form: str, samples: list[dict[str, Any]], folder: Path) -> Path:
    if form == "llava-json":
        path = folder / "data.json"
        path.write_text(json.dumps(samples))
        return path
    if form == "captions-folder":
        lines = [json.dumps({"file_name": "a.jpg", **sample}) for sample in samples]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
        return folder
    if form in ("webdataset", "energon"):
        members = [
            {"__key__": f"{number:04d}", "jpg": IMAGE, "json": json.dumps(sample).encode()}
            for number, sample in enumerate(samples)
        ]
        write_shard(folder / "tars" / "a.tar", members)
        if form == "energon":
            meta = folder / "tars" / ".nv-meta"
            meta.mkdir()
            (meta / "split.yaml").write_text("split_parts: {train: [a.tar]}")
            (meta / "dataset.yaml").write_text(
                "sample_type: {__module__: megatron.energon, __class__: VQASample}\n"
                "field_map: {image: jpg, context: 'json[question]', answers: 'json[answer]'}\n"
            )
        return folder / "tars"
    return write_table(samples, folder / ("data.parquet" if form == "parquet" else "data"))


@pytest.mark.parametrize(
    "form",
    ["llava-json", "captions-folder", "webdataset", "energon", "parquet", "hf-datasets"],
)
def test_every_sample_is_written_or_rejected(folder: Path, tmp_path: Path, form: str):
    drawing = Drawing(len(form))
    samples = [drawing.sample() for _ in range(150)]
    source = write_source(form, samples, folder)
    options = ImportOptions(form, source, name="it", images=folder)
    try:
        summary = import_source(options, tmp_path / "out")
    except DataError as error:
        pytest.fail(f"nothing could be used: {error}")
    assert summary.num_samples + summary.num_rejected == len(samples)
    assert summary.num_samples > 0
    out = tmp_path / "out" / "train" / "it"
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert len(lines) == summary.num_rejected
    assert all(line["name"] and line["reason"] and line["detail"] for line in lines)
    # What was written is read again.
    parser, num_read = SampleParser(), 0
    with ShardReader() as reader:
        for shard in sorted(out.glob("*.tar")):
            stored, damage = scan_shard(shard)
            assert damage is None
            for sample in stored:
                texts = {n: reader.read(str(shard), where) for n, where in sample.texts().items()}
                images = sample.media(lambda where: b"").images
                assert all(reader.read(str(shard), where) == IMAGE for where in images)
                parser.parse(texts, len(images))
                num_read += 1
    assert num_read == summary.num_samples
