"""The held-out samples of a training run: the same ones in the same order, whenever they are asked
for, at every layout, in every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nvlm.batch import CopyAhead, StepBatch, StepPart
from nvlm.config import RunConfig
from nvlm.config.changed import changed, changed_section
from nvlm.data.index.rejected import check_rejected
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.loading.loader import Loader
from nvlm.data.order.planner import Planner
from nvlm.data.shards.sources import Source, find_all_sources
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError, NvlmError
from nvlm.parallel.tiles import Share

# Of the order and of what is drawn for samples with several prompts: runs of other seeds are
# measured on the same.
_SEED = 0


@dataclass(frozen=True)
class ValidationData:
    """Opened and checked; see `open_validation_data`."""

    config: RunConfig  # the run's, with the held-out split in place of the training's
    indexes: list[SourceIndex]
    encoder: SampleEncoder

    def batches(
        self,
        data_rank: int,
        data_size: int,
        copy_ahead: CopyAhead | None = None,
        share: Share | None = None,
    ) -> Iterator[StepBatch] | Iterator[StepPart]:
        """One pass for one data-parallel rank, from its beginning; see `Loader`."""
        planner = Planner(self.config, self.indexes)
        loader = Loader(self.config, planner, data_rank, data_size, copy_ahead, share, self.encoder)
        return iter(loader)


def open_validation_data(
    config: RunConfig, trained: list[SourceIndex], encoder: SampleEncoder
) -> ValidationData | None:
    """The sources below `data.root`/`validation.split`; None where the run has no validation.

    Sources of the training's blend have its settings. Indexes that are missing are built.

    Args:
        trained: what the run trains on, none of which may be held out.
        encoder: the run's.

    Raises:
        DataError: there are no such samples, or they are trained on.
    """
    wanted = config.validation
    if wanted.every is None:
        return None
    if wanted.split == config.data.split:
        raise DataError(
            f"validation.split {wanted.split} is data.split, what the run trains on: name a folder "
            f"of held-out shards below {config.data.root}, or turn validation off "
            "(validation.every=null)"
        )
    try:
        held_out = changed(config, {"data.split": wanted.split, "train.seed": _SEED})
        sources = _chosen(held_out, find_all_sources(held_out))
        indexes = open_indexes(held_out, encoder, sources=sources)
        check_rejected(indexes, config.data.max_skipped_share)
        for index in indexes:
            _end_after_a_pass(index, wanted.samples)
        # The order draws from sources by their sizes.
        held_out = changed(held_out, {"data.blend": None})
        Planner(held_out, indexes).next_step()  # finds out whether there is something that fits
    except NvlmError as error:
        raise DataError(f"validation.split {wanted.split}: {error}") from None
    _refuse_trained(config, indexes, trained)
    return ValidationData(held_out, indexes, encoder)


def _chosen(config: RunConfig, found: dict[str, Source]) -> dict[str, Source]:
    names = config.validation.sources
    if names is None:
        return found
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"validation.sources: no {', '.join(missing)} in "
            f"{Path(config.data.root) / config.data.split}, which has {', '.join(found)}"
        )
    return {name: found[name] for name in sorted(set(names))}


def _end_after_a_pass(index: SourceIndex, most_samples: int | None) -> None:
    """One pass over a source, or over its first samples, whatever the training's blend says."""
    share = 1.0 if most_samples is None or not len(index) else most_samples / len(index)
    index.settings = changed_section(index.settings, {"max_epochs": min(1.0, share)})


def _refuse_trained(
    config: RunConfig, held_out: list[SourceIndex], trained: list[SourceIndex]
) -> None:
    """Raise `DataError` where shards are trained on: the same files, or copies of a whole source's.

    Keys say nothing: other samples may have the same ones.
    """
    split = config.validation.split
    shards = {_identity(shard): (index, shard) for index in trained for shard in index.shards}
    contents = {index.content_hash: index for index in trained}
    for index in held_out:
        for shard in index.shards:
            if (same := _identity(shard)) in shards:
                of, _ = shards[same]
                raise DataError(
                    f"validation.split {split}: {shard} of source {index.source} is also trained "
                    f"on, by source {of.source} of the blend: hold other shards out"
                )
        if of := contents.get(index.content_hash):
            raise DataError(
                f"validation.split {split}: source {index.source} has the same {len(index):,} "
                f"samples as source {of.source}, which the run trains on: hold other shards out"
            )


def _identity(shard: Path) -> tuple[int, int] | Path:
    try:
        stat = shard.stat()
    except OSError:  # a link to nowhere, whose reading rejects it
        return shard.absolute()
    return stat.st_dev, stat.st_ino
