"""The collectives that torch's flight recorder has noted in this process.

Torch notes each one as it is issued, and its end where it learns of it, in a ring of 2,000 entries
(TORCH_FR_BUFFER_SIZE). They are read as JSON: its other form is a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Collective:
    """The last collective that this process issued in a group."""

    group: str  # torch's name of it, the same on all of its ranks
    description: str  # Megatron-core's name
    operation: str
    sequence: int  # the how manieth of the group
    is_done: bool

    def __str__(self) -> str:
        return f"{self.operation} number {self.sequence} of {self.description}"


def read(dump: Callable[..., bytes] | None) -> list[Collective]:
    """The last collective of each group, the latest of all last; none where nothing was noted.

    Args:
        dump: torch's function that gives the entries as JSON; None: it has none.
    """
    if dump is None:
        return []
    entries = json.loads(dump(includeCollectives=True, onlyActive=False)).get("entries", [])
    last: dict[str, dict[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: entry["record_id"]):
        if not entry.get("is_p2p"):
            group = str(entry["process_group"][0])
            last.pop(group, None)
            last[group] = entry
    return [
        Collective(
            group=group,
            description=str(entry["process_group"][1]) or group,
            operation=str(entry["profiling_name"]).partition(":")[2] or entry["profiling_name"],
            sequence=int(entry["collective_seq_id"]),
            is_done=bool(entry.get("retired")) or entry.get("state") == "completed",
        )
        for group, entry in last.items()
    ]
