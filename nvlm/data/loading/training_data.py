"""The samples of a training run, from where it stands in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nvlm.batch import CopyAhead, SkippedSample, StepBatch, StepPart
from nvlm.config import RunConfig
from nvlm.data.index.rejected import check_rejected
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.loading.loader import Loader
from nvlm.data.order.planner import Planner
from nvlm.data.shards.sources import find_sources
from nvlm.data.text.encode import SampleEncoder
from nvlm.parallel.tiles import Share


@dataclass(frozen=True)
class TrainingData:
    """Opened, checked and placed where the run goes on; see `open_training_data`."""

    config: RunConfig
    encoder: SampleEncoder
    indexes: list[SourceIndex]
    planner: Planner
    # What differs from the data that the run had before, and where each source goes on.
    changes: list[str]

    def batches(
        self,
        data_rank: int,
        data_size: int,
        copy_ahead: CopyAhead | None = None,
        share: Share | None = None,
    ) -> Iterator[StepBatch] | Iterator[StepPart]:
        """The steps of one data-parallel rank; see `Loader`. To be called once."""
        loader = Loader(
            self.config, self.planner, data_rank, data_size, copy_ahead, share, self.encoder
        )
        return iter(loader)

    def rejected(self) -> list[SkippedSample]:
        """What the sources have that cannot be used."""
        return [sample for index in self.indexes for sample in index.rejected]


def check_sources(config: RunConfig) -> None:
    """What can be refused of the run's data at once, without a look into a shard.

    Raises:
        DataError: there are no shards, the blend names an unknown source, the tokenizer or a prompt
            pool is missing, or with this tokenizer no image of most tiles fits into a sequence.
    """
    find_sources(config)
    SampleEncoder.from_config(config).check_room(config.stage.sequence_length)


def open_training_data(
    config: RunConfig, state: dict | None = None, allow_change: bool = False
) -> TrainingData:
    """Open the run's sources and go to `state`; indexes that are missing or stale are built.

    Args:
        state: `StepBatch.data_state` of the last step trained; None: before the first one.
        allow_change: where `state` belongs to other data or settings, go on as
            `Planner.continue_from` says.

    Raises:
        DataError: no usable sample, too many that are not, or `state` belongs to other data or
            settings.
    """
    sources = find_sources(config)
    encoder = SampleEncoder.from_config(config)
    indexes = open_indexes(config, encoder, sources=sources)
    planner = Planner(config, indexes)
    changes: list[str] = []
    if state is not None:
        changes = planner.changes_since(state) if allow_change else []
        if changes:
            planner.continue_from(state)
        else:
            planner.load_state(state)
    check_rejected(indexes, config.data.max_skipped_share)
    return TrainingData(config, encoder, indexes, planner, changes)
