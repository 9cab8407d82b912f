"""What both directions of a conversion need around them: process groups and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nvlm.config.schema import ParallelConfig, RunConfig
from nvlm.parallel.groups import (
    Parallel,
    initialize,
    is_main_process,
    shut_down,
    world_size_from_environment,
)


@contextmanager
def conversion_groups(config: RunConfig) -> Iterator[tuple[RunConfig, Parallel]]:
    """Process groups for a conversion, and `config` with the layout they have.

    One process converts any model whole, whatever `config.parallel` says; several take its layout.
    Batch sizes play no role here and are set so that they fit. Groups that exist are taken over and
    left in place.

    Raises:
        ConfigError: the number of processes does not fit `config.parallel`.
    """
    import torch.distributed as dist

    existed = dist.is_initialized()
    world_size = dist.get_world_size() if existed else world_size_from_environment()
    layout = ParallelConfig() if world_size == 1 else config.parallel
    train = config.train.model_copy(update={"micro_batch_size": 1, "global_batch_size": world_size})
    config = config.model_copy(update={"parallel": layout, "train": train})
    parallel = initialize(config, world_size)
    try:
        yield config, parallel
    finally:
        if not existed:
            shut_down()


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on the terminal of the main process; yields the function that moves it by one."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not is_main_process(),
    )
    with bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
