"""Levels of alignment for a source: how well CLIP finds that each image and its text agree.

Samples that begin with an image are sorted by CLIP's cosine and cut into levels of equal numbers,
as AlignGPT does (arXiv 2405.14129, section 3.2). Shards are copied with the level in the sample's
JSON (`alignment_level`, and the cosine as `alignment_score`); all else of them stays as it is.

The text is the first answer of a conversation, the first of several ways to ask a sample, or a
document's text up to its first paragraph's end; CLIP reads its first tokens (77 of OpenAI's). Where
a question has several images the mean of their cosines counts.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nvlm import platform
from nvlm.data.index.stored import ReadSample, decode_images, read_sample
from nvlm.data.samples.conversations import begins_with_image
from nvlm.data.samples.kinds import SampleParser
from nvlm.data.samples.members import split_name
from nvlm.data.samples.sample import IMAGE_MARK, SampleError
from nvlm.data.samples.text_members import read_json
from nvlm.data.shards.energon import is_prepared
from nvlm.data.shards.shard import ShardReader, scan_shard
from nvlm.errors import DataError
from nvlm.files import folder_beside

_MAX_MEGAPIXELS, _MAX_FRAMES = 100.0, 8
_PAIRS_AT_ONCE = 32


@dataclass(frozen=True)
class Scored:
    """A sample that begins with an image."""

    shard: Path
    key: str
    score: float  # cosine


@dataclass(frozen=True)
class Levels:
    """What was written."""

    levels: list[list[Scored]]  # the lowest first
    num_others: int  # samples that were copied as they are: without an image first, or unreadable


def write_levels(source: Path, out: Path, clip: Path, num_levels: int = 8) -> Levels:
    """Copy the shards of folder `source` to a new folder `out`, with levels.

    Args:
        clip: a folder with a CLIP model that transformers opens, as safetensors.

    Raises:
        DataError: there are no shards, `out` exists, the folder holds no CLIP, or there are fewer
            samples with images than levels.
    """
    shards = sorted(source.glob("*.tar")) if source.is_dir() else []
    if not shards:
        raise DataError(f"{source}: no folder with shards (*.tar)")
    if is_prepared(source):
        raise DataError(
            f"{source}: prepared for Energon, whose field map says which fields are read; import "
            "it first (`nvlm data import --format energon`)"
        )
    if out.exists():
        raise DataError(f"{out}: exists; name a new folder")
    scorer = ClipScorer(clip)
    scored: list[Scored] = []
    num_others = 0
    for shard in shards:
        found, others = _score_shard(shard, scorer)
        scored += found
        num_others += others
    if len(scored) < num_levels:
        raise DataError(
            f"{source}: {len(scored)} samples begin with an image, which cannot be {num_levels} "
            "levels"
        )
    in_order = sorted(scored, key=lambda one: one.score)
    levels: list[list[Scored]] = [[] for _ in range(num_levels)]
    for rank, one in enumerate(in_order):
        levels[rank * num_levels // len(in_order)].append(one)
    fields: dict[Path, dict[str, dict[str, Any]]] = {shard: {} for shard in shards}
    for level, members in enumerate(levels):
        for one in members:
            said = {"alignment_level": level, "alignment_score": round(one.score, 6)}
            fields[one.shard][one.key] = said
    with folder_beside(out) as beside:
        for shard in shards:
            _copy(shard, beside / shard.name, fields[shard])
    return Levels(levels, num_others)


class ClipScorer:
    """CLIP's cosines of images and texts."""

    def __init__(self, folder: Path):
        """Raises `DataError` where `folder` holds no CLIP that can be read."""
        # Its types would be looked for in all of transformers, which takes pyright minutes.
        transformers: Any = import_module("transformers")
        config = folder / "config.json"
        kind = json.loads(config.read_text()).get("model_type") if config.is_file() else None
        if kind != "clip":
            found = "no config.json" if kind is None else f"a model of type {kind}"
            raise DataError(
                f"--clip {folder}: {found}; expected a folder of a CLIP, such as "
                "openai/clip-vit-large-patch14-336"
            )
        try:
            model = transformers.CLIPModel.from_pretrained(folder, use_safetensors=True)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self._processor = transformers.CLIPImageProcessor.from_pretrained(folder)
        except (OSError, ValueError) as error:
            first_line = str(error).strip().partition("\n")[0]
            raise DataError(f"--clip {folder}: not read by transformers: {first_line}") from None
        self._device = platform.current().device()
        self._model = model.to(self._device).eval()

    @torch.no_grad()
    def cosines(self, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]) -> list[float]:
        """Of each image [height, width, 3] with the text of its place."""
        words = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        pixels = self._processor(images=list(images), return_tensors="pt")
        found = self._model(
            input_ids=words["input_ids"].to(self._device),
            attention_mask=words["attention_mask"].to(self._device),
            pixel_values=pixels["pixel_values"].to(self._device),
        )
        # Both are of length 1.
        return (found.image_embeds * found.text_embeds).sum(-1).tolist()


def _score_shard(shard: Path, scorer: ClipScorer) -> tuple[list[Scored], int]:
    """The samples of a shard that begin with an image, and how many others there are."""
    found: dict[str, list[float]] = {}
    all_keys: set[str] = set()
    pairs = _pairs(shard, all_keys)
    while some := list(islice(pairs, _PAIRS_AT_ONCE)):
        keys, images, texts = zip(*some, strict=True)
        for key, cosine in zip(keys, scorer.cosines(images, texts), strict=True):
            found.setdefault(key, []).append(cosine)
    scored = [Scored(shard, key, sum(scores) / len(scores)) for key, scores in found.items()]
    return scored, len(all_keys) - len(scored)


def _pairs(shard: Path, all_keys: set[str]) -> Iterator[tuple[str, NDArray[np.uint8], str]]:
    """(key, image, text) of each image that a first question or the beginning of a document has."""
    stored, damage = scan_shard(shard)
    if damage is not None:
        raise DataError(f"{shard}: {damage}; repair it first")
    parser = SampleParser()
    with ShardReader() as reader:
        for one in stored:
            all_keys.add(one.key)
            try:
                read = read_sample(reader, str(shard), one, parser, _MAX_MEGAPIXELS, _MAX_FRAMES)
                images, text = _first_images(read)
                pixels = [
                    *decode_images(reader, str(shard), images, read.num_frames, _MAX_MEGAPIXELS)
                ]
            except SampleError:
                continue  # the index says why
            for image in pixels:
                yield one.key, image, text


def _first_images(read: ReadSample) -> tuple[list, str]:
    """The images of a sample's beginning, and the text that they are compared with."""
    messages = read.sample.conversation(0)
    if not begins_with_image(messages):
        return [], ""
    if messages[0]["role"] == "document":
        marks, said = messages[0]["content"], messages[0]["content"]
    else:
        marks = next(m["content"] for m in messages if m["role"] == "user")
        said = next(m["content"] for m in messages if m["role"] == "assistant")
    return read.images[: marks.count(IMAGE_MARK)], said.replace(IMAGE_MARK, " ").strip()


def _copy(shard: Path, target: Path, fields: dict[str, dict[str, Any]]) -> None:
    """The shard with `fields` in the JSON of samples by key; of those without one, in a new one."""
    left = dict(fields)
    with (
        tarfile.open(shard) as old,
        tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as new,
    ):
        members = [member for member in old if member.isfile()]
        with_json = {
            parts[0] for m in members if (parts := split_name(m.name)) and parts[1] == "json"
        }
        for member in members:
            file, parts = old.extractfile(member), split_name(member.name)
            assert file is not None
            data = file.read()
            if parts is None:
                _add(new, member.name, data)
                continue
            key, extension = parts
            if key in left and key not in with_json:
                _add(new, f"{key}.json", json.dumps(left.pop(key)).encode())
            elif key in left and extension == "json":
                value = read_json(data)
                value = {"conversations": value} if isinstance(value, list) else value
                data = json.dumps(value | left.pop(key), ensure_ascii=False).encode()
            _add(new, member.name, data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
