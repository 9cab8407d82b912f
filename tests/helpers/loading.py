"""Loaders over given indexes, for tests of the loader itself; a run has `open_training_data`."""

from __future__ import annotations

import gc

from nvlm.config import RunConfig
from nvlm.data.index.source_index import SourceIndex
from nvlm.data.loading.loader import Loader
from nvlm.data.order.planner import Planner


def build_loader(
    config: RunConfig,
    indexes: list[SourceIndex],
    data_rank: int,
    data_size: int,
    state: dict | None = None,
) -> Loader:
    """A `Loader` of its own planner, from the beginning or from `state` on.

    Raises:
        DataError: no usable sample, or `state` belongs to other data or settings.
    """
    # Workers are forked after a search for garbage: in a program's process not among its modules,
    # and here neither, which the loader before this one has undone.
    gc.freeze()
    planner = Planner(config, indexes)
    if state is not None:
        planner.load_state(state)
    return Loader(config, planner, data_rank, data_size)
