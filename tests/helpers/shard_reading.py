"""Every sample of shards, for tests of what an import wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nvlm.data.samples.kinds import SampleParser
from nvlm.data.samples.sample import Messages
from nvlm.data.shards.shard import ShardReader, scan_shard


def iterate_samples(shards: list[Path]) -> Iterator[tuple[str, Messages, list[bytes]]]:
    """(key, messages, encoded images) in shard order; whatever is wrong is raised."""
    parser = SampleParser()
    with ShardReader() as reader:
        for shard in shards:
            samples, damage = scan_shard(shard)
            if damage is not None:
                raise damage
            for stored in samples:
                texts = {n: reader.read(str(shard), w) for n, w in stored.texts().items()}
                media = stored.media(lambda where, path=str(shard): reader.read(path, where))
                images = [reader.read(str(shard), where) for where in media.images]
                yield stored.key, parser.parse(texts, len(images)).conversation(0), images
