"""How the process that has the questions tells the other processes of its replica what to do.

While questions are answered each step's work is broadcast. While there are none, which may last
longer than a collective may, the others look into the run's store.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import count

import torch
import torch.distributed as dist

from nvlm import platform
from nvlm.generate.decoder import Work
from nvlm.parallel.attempt import attempt_store
from nvlm.parallel.groups import Parallel, broadcast_object

_SECONDS_BETWEEN_LOOKS = 0.02
# Sessions are made in the same order by all processes of a replica.
_sessions: dict[int, count] = defaultdict(count)


@dataclass(frozen=True)
class Rest:
    """No question is open: the next message may be long in coming."""


@dataclass(frozen=True)
class End:
    """No more messages come. `failure` is what the leading process says of it, if it failed."""

    failure: str = ""


class Replica:
    """The processes of one model replica, which all make one of these for each session."""

    def __init__(self, parallel: Parallel):
        self._parallel = parallel
        self._group = parallel.groups.mp
        self.is_alone = dist.get_world_size(self._group) == 1
        self._is_resting = True
        self._num_rests = 0
        if not self.is_alone:
            name = f"{parallel.data_rank}/{next(_sessions[parallel.data_rank])}"
            self._store = dist.PrefixStore(f"nvlm/sessions/{name}", attempt_store())

    def send(self, message: Work | Rest | End) -> None:
        """From the leading process to all others; to those who rest, not that they may."""
        if self.is_alone or (self._is_resting and isinstance(message, Rest)):
            return
        if self._is_resting:
            self._store.set(f"wake{self._num_rests}", "")
        self._exchange(message)

    def receive(self) -> Work | Rest | End:
        """What the leading process sends next."""
        if self._is_resting:
            while not self._store.check([f"wake{self._num_rests}"]):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        return self._exchange(None)

    def _exchange(self, message: Work | Rest | End | None) -> Work | Rest | End:
        bare = _without_tiles(message) if isinstance(message, Work) else message
        source = dist.get_global_rank(self._group, 0)
        received = broadcast_object(bare, source, self._group)
        assert received is not None
        self._is_resting = isinstance(received, Rest)
        self._num_rests += self._is_resting
        if not isinstance(received, Work):
            return received
        if self._parallel.is_first_stage:
            return self._with_tiles(received, message)
        return received

    def _with_tiles(self, work: Work, own: Work | Rest | End | None) -> Work:
        """On the first stage, whose tensor ranks all encode all tiles."""
        parallel, device = self._parallel, platform.current().device()
        begun = list(work.begun)
        for i, question in enumerate(begun):
            if not question.num_tiles:
                continue
            if isinstance(own, Work):
                tiles = own.begun[i].tiles.to(device)
            else:
                shape = (question.num_tiles, *question.tiles.shape[1:])
                tiles = torch.empty(shape, dtype=torch.uint8, device=device)
            if parallel.tensor_size > 1:
                source = dist.get_global_rank(parallel.groups.tp, 0)
                dist.broadcast(tiles, src=source, group=parallel.groups.tp)
            begun[i] = replace(question, tiles=tiles)
        return replace(work, begun=tuple(begun))


def _without_tiles(work: Work) -> Work:
    return replace(
        work, begun=tuple(replace(question, tiles=question.tiles[:0]) for question in work.begun)
    )
