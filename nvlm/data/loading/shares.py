"""A step read by all processes of a model replica: tiles by shares, the text by one of them.

The plan of a step holds every grid, so each process knows which tiles are its own before anything
is read (`nvlm.parallel.tiles.Share`). That an image is damaged is found by who decodes it, after
others have read the sample's text and its other images. So no process leaves out a sample by
itself: each gives what it found, and the one that reads the text puts the step together of that,
exactly as `nvlm.data.loading.reader` does alone.

An image that lies across the border of two shares is decoded by both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nvlm.batch import (
    CopyAhead,
    Findings,
    SkippedSample,
    StepBatch,
    StepPart,
    WholeStep,
    check_micro_batch,
)
from nvlm.data.loading.reader import (
    MicroBatchReader,
    MicroBatchRequest,
    SampleRequest,
    collated,
    read_or_explain,
)
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import EncodedSample
from nvlm.errors import DataError
from nvlm.parallel.tiles import Share
from nvlm.sizes.visual import VisualLayout

# Where in a sample something is wrong, if not in an image.
_TEXT = -1


@dataclass(frozen=True)
class _Planned:
    """A sample of a step and where its tiles are among the step's."""

    number: int  # in the data rank's step
    sample: SampleRequest
    starts: tuple[int, ...]  # first tile of each image, and where the last one's end

    def images(self, start: int, stop: int) -> range:
        """Numbers of its images that have tiles from `start` to `stop`."""
        touched = [
            image
            for image, (first, end) in enumerate(pairwise(self.starts))
            if max(first, start) < min(end, stop)
        ]
        return range(touched[0], touched[-1] + 1) if touched else range(0)


@dataclass(frozen=True)
class PartRequest:
    """What is read at once: of one micro-batch."""

    samples: list[_Planned]
    start: int  # tiles of the step, from
    stop: int  # to
    reads_text: bool


@dataclass
class PartRead:
    """What was read of a `PartRequest`."""

    tiles: Tensor  # [stop - start, 3, image_size, image_size] uint8
    texts: dict[int, EncodedSample] = field(default_factory=dict)  # by the samples' numbers
    # As in `Findings`.
    failures: list[tuple[int, int, SkippedSample]] = field(default_factory=list)
    repaired: dict[int, Counter[str]] = field(default_factory=dict)


class PartReader(Dataset):
    """`PartRequest` in, `PartRead` out; or a message, where no further reading makes sense."""

    def __init__(self, reader: MicroBatchReader):
        self.reader = reader

    def __getitem__(self, request: PartRequest) -> PartRead | str:
        samples = [planned.sample for planned in request.samples]
        return read_or_explain(self._read, request, samples)

    def _read(self, request: PartRequest) -> PartRead:
        size = self.reader.encoder.visual.image_size
        num_tiles = request.stop - request.start
        read = PartRead(torch.zeros(num_tiles, 3, size, size, dtype=torch.uint8))
        for planned in request.samples:
            # Only what is known to be the sample's fault. All else is ours and must be seen.
            place = _TEXT
            try:
                if request.reads_text:
                    with noting_repairs() as repairs:
                        read.texts[planned.number] = self.reader.read_text(planned.sample)
                    _note(read, planned, repairs)
                images = planned.images(request.start, request.stop)
                tiles_of_images = self.reader.read_images(planned.sample, images.start, images.stop)
                for place in images:
                    with noting_repairs() as repairs:
                        tiles = torch.from_numpy(next(tiles_of_images))
                    first = planned.starts[place]
                    kept = slice(max(request.start - first, 0), request.stop - first)
                    start = max(first, request.start) - request.start
                    read.tiles[start : start + len(tiles[kept])] = tiles[kept]
                    if first >= request.start:  # whoever has its first tile counts
                        _note(read, planned, repairs)
            except SampleError as error:
                read.failures.append((planned.number, place, planned.sample.skipped(error)))
        return read


def _note(read: PartRead, planned: _Planned, repairs: Counter[str]) -> None:
    counts = read.repaired.setdefault(planned.number, Counter())
    counts.update({f"{planned.sample.source}/{what}": n for what, n in repairs.items()})


class StepShares:
    """How a `Loader` reads the share of one process: requests, and the steps made of the answers.

    Text is read where the share's number is 0.
    """

    def __init__(
        self,
        reader: MicroBatchReader,
        share: Share,
        copy_ahead: CopyAhead | None = None,
    ):
        """
        Args:
            copy_ahead: see `Loader`.
        """
        self.reader = PartReader(reader)
        self._reads_text = share.number == 0
        self._samples = reader
        self._share = share
        self._copy_ahead = copy_ahead

    def split(self, requests: Sequence[MicroBatchRequest]) -> list[PartRequest]:
        """What this process reads of a step of such micro-batches; at least one request."""
        plan = _StepPlan(requests, self._samples.encoder.visual)
        own_start, own_stop = self._share.tiles(plan.num_tiles)
        parts = []
        for samples in map(_flat, plan.micro_batches):
            if not samples:
                continue
            begin, end = samples[0].starts[0], samples[-1].starts[-1]
            start = min(max(own_start, begin), end)
            stop = max(min(own_stop, end), start)
            touched = [planned for planned in samples if planned.images(start, stop)]
            if self._reads_text:
                parts.append(PartRequest(samples, start, stop, reads_text=True))
            elif touched:
                parts.append(PartRequest(touched, start, stop, reads_text=False))
        return parts or [PartRequest([], 0, 0, reads_text=False)]

    def receive(self, read: PartRead) -> PartRead:
        # Each shared tensor keeps a file open.
        return replace(read, tiles=read.tiles.clone()) if read.tiles.is_shared() else read

    def join(
        self, step: StepBatch, requests: Sequence[MicroBatchRequest], parts: list[PartRead]
    ) -> StepPart:
        """This process's part of a step.

        Args:
            step: without micro-batches; what the plan skipped is in it.
            parts: answers to `split(requests)`.
        """
        plan = _StepPlan(requests, self._samples.encoder.visual)
        tiles = torch.cat([part.tiles for part in parts])
        repaired = {
            number: dict(counts) for part in parts for number, counts in part.repaired.items()
        }
        failures = [failure for part in parts for failure in part.failures]
        texts = {number: text for part in parts for number, text in part.texts.items()}
        return StepPart(
            self._copy_ahead(tiles) if self._copy_ahead else tiles,
            Findings(failures, repaired, plan.num_tiles),
            partial(_assemble, self._samples, step, plan, texts) if self._reads_text else None,
        )


def _assemble(
    reader: MicroBatchReader,
    step: StepBatch,
    plan: _StepPlan,
    texts: dict[int, EncodedSample],
    found: list[Findings],
) -> WholeStep:
    """The step, by what all processes of the replica found.

    Raises:
        DataError: they read different data.
    """
    if {findings.num_tiles for findings in found} != {plan.num_tiles}:
        raise DataError(
            f"processes of one replica planned steps of {[f.num_tiles for f in found]} tiles: they "
            "see different data or indexes; data.root and data.index_dir have to be the same"
        )
    # Of each sample what reading it alone, its text first, would have come by.
    failures: dict[int, SkippedSample] = {}
    every = chain.from_iterable(findings.failures for findings in found)
    for number, _, skipped in sorted(every, key=lambda failure: failure[:2]):
        failures.setdefault(number, skipped)
    repaired: Counter[str] = Counter()
    for number, counts in chain.from_iterable(findings.repaired.items() for findings in found):
        if number not in failures:
            repaired.update(counts)
    size = reader.encoder.visual.image_size
    no_tiles = np.zeros((0, 3, size, size), np.uint8)
    micro_batches, num_tiles = [], []
    for planned_sequences in plan.micro_batches:
        kept = [
            [planned for planned in sequence if planned.number not in failures]
            for sequence in planned_sequences
        ]
        sequences = [
            [reader.packed(p.sample, texts[p.number], no_tiles) for p in sequence]
            for sequence in kept
        ]
        micro_batches.append(collated(sequences, reader.config, reader.encoder))
        num_tiles.append(sum(p.starts[-1] - p.starts[0] for p in _flat(kept)))
        check_micro_batch(micro_batches[-1], reader.encoder.visual, num_tiles[-1])
    left_out = [
        (p.starts[0], p.starts[-1])
        for p in chain.from_iterable(map(_flat, plan.micro_batches))
        if p.number in failures
    ]
    whole = replace(
        step,
        micro_batches=micro_batches,
        skipped=step.skipped + list(failures.values()),
        repaired=dict(sorted(repaired.items())),
    )
    return WholeStep(whole, num_tiles, left_out)


class _StepPlan:
    """The samples of a step: `micro_batches` of sequences of them, and `num_tiles` of all."""

    def __init__(self, requests: Sequence[MicroBatchRequest], visual: VisualLayout):
        self.micro_batches: list[list[list[_Planned]]] = []
        number = self.num_tiles = 0
        for request in requests:
            sequences = []
            for sequence in request:
                samples = []
                for sample in sequence:
                    sizes = [visual.num_tiles(grid) for grid in sample.grids]
                    starts = tuple(accumulate(sizes, initial=self.num_tiles))
                    samples.append(_Planned(number, sample, starts))
                    number, self.num_tiles = number + 1, starts[-1]
                sequences.append(samples)
            self.micro_batches.append(sequences)


def _flat(sequences: list[list[_Planned]]) -> list[_Planned]:
    return list(chain(*sequences))
