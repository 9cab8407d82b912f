"""Samples that a run left out or repaired, with their pictures where the shards still are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageFile

from nvlm.checkpoint_files import read_config
from nvlm.data.images.image import decode_image, readable_formats
from nvlm.data.index.reading import shard_name
from nvlm.data.samples.repairs import REPAIRS, noting_repairs
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ShardReader, StoredSample, scan_shard
from nvlm.data.shards.sources import Source, find_sources
from nvlm.errors import NvlmError
from nvlm.views.preview_figures import data_url
from nvlm.views.report.run_record import RunRecord

_MAX_CARDS = 24
# Samples of a source that are looked through for one that is repaired.
_MAX_LOOKED_AT = 60
_PICTURE_SIDE = 240
_MAX_PICTURES = 3  # of a sample
_MAX_TEXT = 400
_MAX_MEGAPIXELS = 100.0


@dataclass(frozen=True)
class Example:
    """A sample to look at."""

    source: str
    shard: str
    key: str
    what: str  # why it was left out, or what was done to it
    detail: str
    count: int  # samples of which this is one
    pictures: list[str] = field(default_factory=list)  # data URLs
    text: str = ""


def skipped_examples(run: RunRecord) -> tuple[list[Example], list[str]]:
    """The first sample of each source and reason, the commonest first; and what kept pictures away.

    Numbers are those of `skipped.jsonl`, which names each sample once.
    """
    sources, notes = _sources(run) if run.skipped else ({}, [])
    examples = []
    with ShardReader() as reader:
        for group in run.skipped:
            source, reason, shard, key, detail = (
                str(group.first.get(name, ""))
                for name in ("source", "reason", "shard", "key", "detail")
            )
            pictures, text = [], ""
            if len(examples) < _MAX_CARDS and source in sources:
                stored, path = _find(sources[source], shard, key)
                if stored is not None:
                    pictures, text = _pictures(reader, path, stored), _texts(reader, path, stored)
            examples.append(
                Example(source, shard, key, reason, detail, group.count, pictures, text)
            )
    return examples, notes


def repaired_examples(run: RunRecord) -> list[Example]:
    """Each change made to samples of a source, with how often, and one of its first samples."""
    wanted: dict[tuple[str, str], int] = {}
    for key in run.keys("repaired/"):
        source, _, what = key.removeprefix("repaired/").rpartition("/")
        if number := round(run.series(key).sum()):
            wanted[source, what] = number
    sources, _ = _sources(run) if wanted else ({}, [])
    examples = []
    with ShardReader() as reader:
        found = {
            source: dict(_repaired_in(reader, sources[source]))
            for source in {source for source, _ in wanted}
            if source in sources
        }
    for (source, what), number in sorted(wanted.items(), key=lambda entry: -entry[1]):
        shard, key, pictures = found.get(source, {}).get(what, ("", "", []))
        about = REPAIRS.get(what, what)
        examples.append(Example(source, shard, key, what, about, number, pictures))
    return examples


def _sources(run: RunRecord) -> tuple[dict[str, Source], list[str]]:
    try:
        return find_sources(read_config(run.folder)), []
    except (NvlmError, OSError) as error:
        return {}, [f"no pictures: {error}"]


def _find(source: Source, shard: str, key: str) -> tuple[StoredSample | None, Path]:
    """The sample in a shard that the source has; no other file is opened."""
    for path in source.shards:
        if shard_name(source, path) == shard:
            with suppress(NvlmError, OSError):
                stored, _ = scan_shard(path)
                return next((some for some in stored if some.key == key), None), path
    return None, source.folder


def _repaired_in(
    reader: ShardReader, source: Source
) -> Iterator[tuple[str, tuple[str, str, list[str]]]]:
    """(what was done, (shard, key, pictures)) among the source's first samples, each once."""
    seen: set[str] = set()
    for path in source.shards[:1]:
        with suppress(NvlmError, OSError):
            stored, _ = scan_shard(path)
            for sample in stored[:_MAX_LOOKED_AT]:
                with noting_repairs() as repairs:
                    pictures = _pictures(reader, path, sample)
                for what in set(repairs) - seen:
                    seen.add(what)
                    yield what, (shard_name(source, path), sample.key, pictures)


def _pictures(reader: ShardReader, path: Path, stored: StoredSample) -> list[str]:
    """What can be seen of the sample's images, also of one that is cut off."""
    pictures = []
    with suppress(SampleError, OSError):
        media = stored.media(lambda where: reader.read(str(path), where))
        for where in media.images[:_MAX_PICTURES]:
            data = reader.read(str(path), where)
            with suppress(SampleError, OSError, ValueError, SyntaxError):
                pictures.append(data_url(_small(data)))
    return pictures


def _small(data: bytes) -> Image.Image:
    try:
        image = Image.fromarray(decode_image(data, _MAX_MEGAPIXELS))
    except SampleError:
        image = _as_far_as_it_goes(data)
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    return image


def _as_far_as_it_goes(data: bytes) -> Image.Image:
    """The rows that a cut image still has."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        formats = [name for name in readable_formats() if name != "HEIF"]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > _MAX_MEGAPIXELS * 1e6:
                raise ValueError("too large to show")
            return image.convert("RGB")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _texts(reader: ShardReader, path: Path, stored: StoredSample) -> str:
    """The beginning of the sample's text members, as they are stored."""
    with suppress(SampleError, OSError):
        parts = [reader.read(str(path), where) for where in stored.texts().values()]
        return b"\n".join(parts)[:_MAX_TEXT].decode("utf-8", "replace")
    return ""
