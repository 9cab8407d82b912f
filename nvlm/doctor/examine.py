"""All looks in turn, what each has found, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nvlm import platform
from nvlm.config import RunConfig
from nvlm.doctor.finding import Finding, print_findings
from nvlm.doctor.machine import (
    look_at_device,
    look_at_limits,
    look_at_packages,
    look_at_versions,
)
from nvlm.errors import NvlmError
from nvlm.launch import launched
from nvlm.parallel.groups import leaving_groups
from nvlm.printing import new_console

# Channels of a pixel, each a byte.
_PIXEL_BYTES = 3


class Unfit(NvlmError):
    """What a run needs is not there."""


def examine(configs: Sequence[RunConfig], limit_seconds: float) -> None:
    """Look at this machine, at the places of `configs` and, under torchrun, at the processes.

    Under torchrun every process calls this; the first of each machine looks at the machine.

    Args:
        configs: the runs of a file, one for each of its stages; none: no run is looked at.
        limit_seconds: of each check of the processes.

    Raises:
        Unfit: something is wrong, a line for each; nothing was changed.
    """
    here = launched()
    console = new_console(quiet=here.rank != 0)
    platform.current().bind_local_rank(here.local_rank)
    found: list[Finding] = []
    if here.local_rank == 0:
        for title, findings in _of_machine(configs):
            print_findings(title, findings, console)
            found += findings
    if here.world_size > 1:
        from nvlm.doctor.deadline import Deadline
        from nvlm.doctor.processes import look_at_processes

        deadline = Deadline(limit_seconds)
        with leaving_groups(), deadline.watching():
            for config in configs or [None]:
                found += look_at_processes(config, deadline, console)
    wrong = [f"{finding.what}: {finding.wrong}" for finding in found if finding.wrong]
    if wrong:
        raise Unfit(*wrong)
    what = "this machine"
    what += ", the run's places" if configs else ""
    what += f" and {here.world_size} processes" if here.world_size > 1 else ""
    console.print(f"Nothing wrong was found in {len(found)} things looked at: {what}.")


def _of_machine(configs: Sequence[RunConfig]) -> Iterator[tuple[str, list[Finding]]]:
    yield "Versions", look_at_versions()
    yield "Optional packages", look_at_packages()
    workers = max((config.data.num_workers for config in configs), default=0)
    batch_bytes = max(map(_batch_bytes, configs), default=0)
    yield "This machine", look_at_device() + look_at_limits(workers, batch_bytes)
    if launched().rank == 0:
        from nvlm.doctor.places import look_at_places

        for config in configs:
            yield f"The run {config.run.name}", look_at_places(config)


def _batch_bytes(config: RunConfig) -> int:
    """Of the tiles of a micro-batch, at most."""
    stage, side = config.stage, config.model.vision.image_size
    per_sequence = stage.max_tiles_per_sequence or (
        stage.sequence_length // config.model.num_tokens_per_tile
    )
    return config.train.micro_batch_size * per_sequence * _PIXEL_BYTES * side**2
