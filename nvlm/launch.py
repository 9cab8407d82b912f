"""What torchrun (or Slurm through it) says about this process, read in one place.

    WORLD_SIZE   processes in all         RANK         this one's number, from 0
    LOCAL_RANK   number on its machine    MASTER_ADDR, MASTER_PORT   where they meet

None of them: the process runs alone. A variable that is set but empty is a mistake in a script, and
would start as many runs as there should be processes; it is named. This file imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from nvlm.errors import ConfigError

_MAX_PORT = 65535


@dataclass(frozen=True)
class Launch:
    """This process among those of its run."""

    rank: int
    world_size: int
    local_rank: int


def launched() -> Launch:
    """This process's place; rank 0 of 1 when it was started alone.

    Raises:
        ConfigError: a variable is empty or no number, they contradict each other, or the place
            where several processes meet is missing.
    """
    world_size, rank = _number("WORLD_SIZE"), _number("RANK")
    local_rank = _number("LOCAL_RANK")
    if world_size is None:
        if rank:
            raise ConfigError(f"RANK is {rank}, but WORLD_SIZE is not set: {_REMEDY}")
        return Launch(0, 1, local_rank or 0)
    if world_size == 0:
        raise ConfigError(f"WORLD_SIZE is 0, expected the number of processes: {_REMEDY}")
    if rank is None and world_size > 1:
        raise ConfigError(f"WORLD_SIZE is {world_size}, but RANK is not set: {_REMEDY}")
    for name, number in (("RANK", rank), ("LOCAL_RANK", local_rank)):
        if number is not None and number >= world_size:
            raise ConfigError(
                f"{name} is {number}, but WORLD_SIZE is {world_size}: processes are counted from "
                f"0 to {world_size - 1}"
            )
    if world_size > 1:
        _check_meeting_place()
    return Launch(rank or 0, world_size, local_rank or 0)


def planned_world_size() -> int | None:
    """WORLD_SIZE alone, as a question about a run that is not started; None where not set."""
    return _number("WORLD_SIZE") or None


def is_under_torchrun() -> bool:
    """Whether torchrun started this process: it ends the others when one of them has ended."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def num_local_processes() -> int:
    """How many of the run's processes are on this machine; 1 where it is not said."""
    return _number("LOCAL_WORLD_SIZE") or 1


def has_torchruns_store() -> bool:
    """Whether the run's store is torchrun's and outlives its processes; else it is rank 0's."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def rank_to_speak() -> int:
    """This process's rank, 0 where it is not known; for messages about anything, so never fails."""
    try:
        return _number("RANK") or 0
    except ConfigError:
        return 0


def meeting_place() -> tuple[str, int] | None:
    """Address and port where the run's processes meet; None: it has one, or they are not known."""
    try:
        if launched().world_size == 1:
            return None
    except ConfigError:
        return None
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


_REMEDY = "start several processes with `torchrun -m nvlm ...`, or unset it"


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    digits = text.strip()
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 9:
        found = f"{text!r}" if digits else "empty"
        raise ConfigError(f"{name} is {found}, expected a number: {_REMEDY}")
    return int(digits)


def _check_meeting_place() -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name, "").strip():
            found = "empty" if name in os.environ else "not set"
            raise ConfigError(f"WORLD_SIZE is set, but {name} is {found}: {_REMEDY}")
    port = _number("MASTER_PORT")
    assert port is not None
    if not 0 < port <= _MAX_PORT:
        raise ConfigError(f"MASTER_PORT is {port}, expected a port from 1 to {_MAX_PORT}")
