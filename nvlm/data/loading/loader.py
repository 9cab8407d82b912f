"""The loader: packs of the planner read, decoded and encoded by worker processes.

Every rank runs the same planner (order/planner.py) and reads only its own packs. Workers run ahead
of training, and a thread plans and collects the next step while one is trained; the position that
travels with a step is the one after that step, whatever is already prepared.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from nvlm import phases
from nvlm.batch import CopyAhead, MicroBatch, SkippedSample, StepBatch, StepPart
from nvlm.config import RunConfig
from nvlm.data.loading.ahead import one_ahead
from nvlm.data.loading.reader import (
    MicroBatchReader,
    MicroBatchRequest,
    Read,
    SampleRequest,
    unpack,
)
from nvlm.data.loading.shares import PartRequest, StepShares
from nvlm.data.order.draws import Draw, Pack, PlannedDraws
from nvlm.data.order.lengths import PlannedSource
from nvlm.data.order.planner import Planner
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError
from nvlm.failures import explain
from nvlm.parallel.tiles import Share
from nvlm.sizes.visual import VisualLayout
from nvlm.socket_folder import make_socket_folder
from nvlm.workers import allow_stacks, end_with_parent, give_stacks

# Micro-batches that each worker prepares ahead: so many, or fewer if their tiles were more bytes.
_MAX_PREFETCHED = 4
_MAX_PREFETCHED_BYTES = 2**30


@dataclass(frozen=True)
class _Requested:
    """A step that is being read."""

    step: StepBatch  # to be filled
    micro_batches: list[MicroBatchRequest]
    num_answers: int


class _WholeSteps:
    """How a loader reads the steps of its data rank where it reads all of them."""

    def __init__(self, reader: MicroBatchReader, copy_ahead: CopyAhead | None):
        self.reader = reader
        self._copy_ahead = copy_ahead

    def split(self, requests: list[MicroBatchRequest]) -> list[MicroBatchRequest]:
        return requests

    def receive(self, answer: Read) -> tuple[MicroBatch, list[SkippedSample], Counter[str]]:
        travelled, skipped, repaired = answer
        return unpack(travelled), skipped, repaired

    def join(self, step: StepBatch, _: list[MicroBatchRequest], answers: list) -> StepBatch:
        micro_batches, skipped, repaired = zip(*answers, strict=True)
        copy_ahead = self._copy_ahead
        return replace(
            step,
            micro_batches=[m.without_tiles() if copy_ahead else m for m in micro_batches],
            tiles_ahead=[copy_ahead(m.tiles) for m in micro_batches] if copy_ahead else None,
            skipped=step.skipped + list(chain(*skipped)),
            repaired=dict(sorted(sum(repaired, Counter()).items())),
        )


class Loader:
    """Iterator of `StepBatch`, one per global step; endless, unless `max_epochs` ends every source.

    Of the `g` packs of a global step, rank r of d gets packs r*g/d up to (r+1)*g/d, in as many
    micro-batches as every other rank. The planner may stand where any number of ranks and workers
    left it.
    """

    def __init__(
        self,
        config: RunConfig,
        planner: Planner,
        data_rank: int,
        data_size: int,
        copy_ahead: CopyAhead | None = None,
        share: Share | None = None,
        encoder: SampleEncoder | None = None,
    ):
        """
        Args:
            copy_ahead: begins to copy a step's tiles to the device as soon as they are read, while
                the step before is trained. None: they stay.
            share: what this process reads of its data rank's steps, which then are given as
                `StepPart`; None: all.
            encoder: the run's, where one was made before.
        """
        batch, micro_batch = config.train.global_batch_size, config.train.micro_batch_size
        assert batch % (data_size * micro_batch) == 0, "check_world_size was not called"
        assert 0 <= data_rank < data_size
        self._config = config
        self._planner = planner
        self._num_packs = batch // data_size
        self._first_pack = data_rank * self._num_packs
        self._requested: deque[_Requested] = deque()
        self._is_used = False
        parsers = {source.index.source: source.index.parser for source in planner.sources}
        encoder = encoder or SampleEncoder.from_config(config)
        reader = MicroBatchReader(config, encoder, parsers)
        self._way: _WholeSteps | StepShares = (
            _WholeSteps(reader, copy_ahead)
            if share is None
            else StepShares(reader, share, copy_ahead)
        )

    def __iter__(self) -> Iterator[StepBatch] | Iterator[StepPart]:
        # A second pass would start after what the workers of the first had requested.
        assert not self._is_used, "a loader is iterated once; build another from a state"
        self._is_used = True
        steps = self._steps()
        return one_ahead(steps) if self._config.data.num_workers else steps

    def _steps(self) -> Generator[Any, None, None]:
        answers = []
        phases.readers.append(self._unread)
        try:
            for answer in self._answers():
                if isinstance(answer, str):
                    raise DataError(answer)
                answers.append(self._way.receive(answer))
                requested = self._requested[0]
                if len(answers) == requested.num_answers:
                    self._requested.popleft()
                    yield self._way.join(requested.step, requested.micro_batches, answers)
                    answers = []
        except RuntimeError as error:  # a worker that was killed, or shared memory that is full
            message = explain(error)
            if message is None:
                raise
            raise DataError(message) from None
        finally:
            phases.readers.remove(self._unread)
            gc.unfreeze()

    def _unread(self) -> list[str]:
        """Keys of the samples of the steps that are being read."""
        packs = [pack for step in list(self._requested) for m in step.micro_batches for pack in m]
        return [f"{sample.source}/{sample.key}" for pack in packs for sample in pack]

    def _answers(self) -> DataLoader:
        num_workers = self._config.data.num_workers
        if num_workers:
            # Workers are forked; the tokenizer's own threads do not survive that.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            make_socket_folder()
            # They share this process's memory until someone writes to it, and a full garbage
            # collection writes to every object: those that exist now are left out of it.
            gc.collect()
            gc.freeze()
            allow_stacks()
        return DataLoader(
            self._way.reader,
            sampler=_Requests(self._requests),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=num_prefetched(self._config) if num_workers else None,
            collate_fn=_unchanged,
            worker_init_fn=_begin_worker,
            # Its own generator: the DataLoader would draw from the training's otherwise.
            generator=torch.Generator(),
        )

    def _requests(self) -> Iterator[MicroBatchRequest | PartRequest]:
        """What this process reads; leaves what else there is to a step in `_requested`."""
        per_micro_batch = self._config.train.micro_batch_size
        while (packs := self._planner.next_step()) is not None:
            own = packs[self._first_pack : self._first_pack + self._num_packs]
            skipped = [self._planner.skipped(draw) for pack in own for draw in pack.dropped]
            shortened = self._count_shortened(packs)
            step = StepBatch([], skipped, self._planner.state(), shortened, self._planner.epochs())
            sequences: MicroBatchRequest = [
                [sample_request(self._planner.sources[d.source], d) for d in pack.draws]
                for pack in own
            ]
            starts = range(0, len(sequences), per_micro_batch)
            micro_batches = [sequences[start : start + per_micro_batch] for start in starts]
            requests = self._way.split(micro_batches)
            self._requested.append(_Requested(step, micro_batches, len(requests)))
            yield from requests

    def _count_shortened(self, packs: list[Pack]) -> dict[str, int]:
        draws = PlannedDraws.concat([pack.draws for pack in packs])
        num_sources = len(self._planner.sources)
        counts = {
            f"{what}/{source.index.source}": int(number)
            for what in ("shortened_tiles", "cut_turns")
            for source, number in zip(
                self._planner.sources,
                np.bincount(draws.source[getattr(draws, what)], minlength=num_sources),
                strict=True,
            )
            if number
        }
        return dict(sorted(counts.items()))


def sample_request(source: PlannedSource, draw: Draw) -> SampleRequest:
    """What a worker needs to read a draw of `source`."""
    index, row = source.index, draw.row
    return SampleRequest(
        source=index.source,
        shard=str(index.shard_path(row)),
        key=index.key(row),
        texts=index.text_ranges(row),
        images=index.image_ranges(row),
        num_frames=int(index.num_frames[row]),
        epoch=draw.epoch,
        variant=draw.variant,
        num_turns=draw.num_turns,
        max_num_tiles=draw.max_num_tiles,
        grids=source.grids(row, draw.max_num_tiles, draw.num_turns),
        length=draw.length,
        loss_weight=source.settings.loss_weight * float(index.loss_weight[row]),
    )


def num_prefetched(config: RunConfig) -> int:
    """Micro-batches that each worker may have ready, so that their tiles stay in bounds."""
    stage, visual = config.stage, VisualLayout.from_config(config)
    max_tiles = visual.num_fitting_tiles(stage.sequence_length, stage.max_tiles_per_sequence)
    num_bytes = config.train.micro_batch_size * max_tiles * 3 * visual.image_size**2
    affordable = _MAX_PREFETCHED_BYTES // max(1, num_bytes * config.data.num_workers)
    return max(1, min(_MAX_PREFETCHED, affordable))


class _Requests(Sampler):
    """A sampler over a generator; runs in the main process."""

    def __init__(self, generate: Callable[[], Iterator]):
        self._generate = generate

    def __iter__(self) -> Iterator:
        return self._generate()


def _begin_worker(_worker: int) -> None:
    """End with the parent, and not before: the last step before a stop needs its samples, and
    torchrun and schedulers send signals to all processes of a run."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    give_stacks()


def _unchanged(value):
    return value
