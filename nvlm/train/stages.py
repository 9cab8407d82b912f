"""The stages of a file, one after the other in the same processes.

Each is a run of its own: it builds its process groups, resumes or starts from the final checkpoint
of the stage before, trains, saves, and leaves memory and groups to the next.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from nvlm import platform, stop_requests
from nvlm.config import RunConfig
from nvlm.errors import NvlmError
from nvlm.parallel.agreement import MAIN_CHANNEL, from_main_rank
from nvlm.parallel.groups import (
    initialize,
    is_main_process,
    leaving_groups,
    world_size_from_environment,
)
from nvlm.parallel.hangs import collective_timeout
from nvlm.plan.layout import with_stage_layers
from nvlm.printing import new_console
from nvlm.stop_requests import Stopped
from nvlm.train.fit import fit
from nvlm.train.ownership import Ownership, own_run_folder, share
from nvlm.train.preflight import check_before_start
from nvlm.train.stage_order import Order, find_order
from nvlm.train.start import Start, check_at_once, check_memory, prepare
from nvlm.train.stopping import end_together, stopping_at_once

_MOST_COLLECTIONS = 10


def train_stages(
    runs: Mapping[str, RunConfig],
    command: str,
    only: str | None = None,
    allow_data_change: bool = False,
    force: bool = False,
) -> None:
    """Run the stages of a file that are not finished, or one of them; each resumes.

    Args:
        runs: stage -> its run, in order.
        command: what the user typed, for messages.
        only: the stage to run, whose predecessor has to be finished.
        allow_data_change: see `nvlm.train.fit.train`.
        force: do not compare memory with `nvlm plan`.

    Raises:
        NvlmError: something the user can put right, of any stage that is to run: nothing was
            changed on disk before the first step, except the sample indexes. Or a stage failed;
            those before it are whole.
        Stopped: it was asked to stop, and is saved where it had taken a step.
    """
    own = runs if only is None else {only: runs[only]}
    console = new_console(quiet=not is_main_process(), soft_wrap=True)
    with ExitStack() as owning:
        ownerships: dict[str, Ownership] = {}
        if is_main_process():
            for config in own.values():
                check_before_start(config)
            for name, config in own.items():
                ownerships[name] = owning.enter_context(own_run_folder(Path(config.run.dir)))
        order = Order(**from_main_rank(lambda: asdict(find_order(runs, only, command))))
        for note in order.notes:
            console.print(note, markup=False, highlight=False)
        if not order.left:
            console.print("all stages are finished", highlight=False)
            return
        with stopping_at_once(runs[order.left[0]].run.dir):
            start = _prepare_all(runs, order.left, allow_data_change, force)
        reason = None
        with leaving_groups():
            for name in order.left:
                with stopping_at_once(runs[name].run.dir):
                    if start is None:
                        _stop_if_asked(ownerships)
                    reason = _take_turn(name, runs, start, own, ownerships, console)
                if reason:
                    end_together()
                    break
                start = None
    if reason:
        raise Stopped(reason)


def _prepare_all(
    runs: Mapping[str, RunConfig], left: list[str], allow_data_change: bool, force: bool
) -> Start:
    """Whatever can be refused of the stages to run; returns where the first of them begins."""
    first, *later = left
    for name in left:
        with _naming(name):
            if not force:
                check_memory(runs[name], world_size_from_environment())
            check_at_once(runs[name], has_weights=name == first)
    # Indexed now, opened again when their turn comes.
    for name in later:
        with _naming(name):
            prepare(with_stage_layers(runs[name]), has_weights=False)
    with _naming(first):
        return prepare(with_stage_layers(runs[first]), allow_data_change)


def _take_turn(
    name: str,
    runs: Mapping[str, RunConfig],
    start: Start | None,
    own: Mapping[str, RunConfig],
    ownerships: Mapping[str, Ownership],
    console,
) -> str | None:
    """Train a stage; returns what asked it to stop, if something did."""
    config = with_stage_layers(runs[name])
    is_first = start is not None
    names = list(runs)
    console.print(
        f"stage {name}, {names.index(name) + 1} of {len(names)}: {config.run.dir}",
        style="bold",
        markup=False,
        highlight=False,
    )
    with _naming(name):
        start = start or prepare(config)
    parallel = initialize(config, timeout=collective_timeout(config.run.hang_minutes))
    if is_first:
        for each in own:
            share(ownerships.get(each))
    reason = fit(config, parallel, start, ownerships.get(name))
    del start, parallel
    _let_go()
    return reason


def _stop_if_asked(ownerships: Mapping[str, Ownership]) -> None:
    """Take what came with the last step of the stage before, which had no step after it to stop.

    Raises:
        Stopped: this process or another was asked; on all of them.
    """
    if any(ownership.stop_file.exists() for ownership in ownerships.values()):
        stop_requests.ask(stop_requests.COMMAND)
    asked = MAIN_CHANNEL.gather(stop_requests.asked(), "ending a stage")
    if reason := next(filter(None, asked), None):
        raise Stopped(reason)


def _let_go() -> None:
    """Free what a stage held: modules, hooks and optimizers, which refer to each other in circles.

    Some circles go through torch's graph. What one collection takes away opens them for the next:
    after a single one the whole model is still there.
    """
    for _ in range(_MOST_COLLECTIONS):
        if not gc.collect():
            break
    platform.current().release_memory()


@contextmanager
def _naming(stage: str) -> Iterator[None]:
    """Put the stage before what is wrong with it."""
    try:
        yield
    except NvlmError as error:
        lines = (f"stage {stage}: {line}" for line in error.args)
        raise type(error)(*lines) from error.__cause__
