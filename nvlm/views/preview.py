"""`nvlm data preview`: the first samples of a run, as training will see them.

The run's own planner and reader make them, and all that is shown is read off their results: the
text off the token ids, what is trained off the labels, the pictures off the tiles. Nothing is laid
out a second time, and no other sample is read. preview_page.py and preview_terminal.py show it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.data.index.source_index import SourceIndex, open_indexes
from nvlm.data.loading.loader import sample_request
from nvlm.data.loading.reader import MicroBatchReader
from nvlm.data.order.draws import Draw
from nvlm.data.order.planner import Planner
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import SampleEncoder
from nvlm.sizes.visual import Grid, VisualLayout
from nvlm.views.preview_beside import describe_beside
from nvlm.views.preview_spans import Span, split_tokens
from nvlm.views.stats import BlendStats, blend_stats

# Sequences whose bars are drawn: those of the samples shown, and of whole steps up to about this.
_MIN_SEQUENCES = 8
_MAX_SEQUENCES = 64
# Rejected samples that are looked through for an example of each reason.
_MAX_EXAMPLES_READ = 10_000


@dataclass(frozen=True)
class ShownImage:
    """An image, or a frame of a video, as the model gets it."""

    size: tuple[int, int] | None  # (width, height) in pixels, as stored, upright; None: a frame
    grid: Grid  # (columns, rows)
    tags: list[str]  # one per tile
    tiles: NDArray[np.uint8]  # [n, 3, image_size, image_size]; the thumbnail last
    is_padded: bool = False  # to its grid, whose aspect ratio is another than the image's

    @property
    def has_thumbnail(self) -> bool:
        return len(self.tiles) > self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class ShownSample:
    """One draw: what was planned, and what reading it gave."""

    number: int  # from 1, in training order
    step: int  # from 1
    sequence: int  # of the global step, from 0
    source: str
    key: str
    task: str
    kind: str
    plan: Draw
    all_tiles: int  # most tiles per image, were it not shortened
    all_turns: int  # turns that the sample has
    num_variants: int  # ways to ask it; 0: stored with its wording
    loss_weight: float  # its source's times its own
    images: list[ShownImage] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)  # what is read by cross-attention, by whom
    problem: SampleError | None = None  # why training leaves it out


@dataclass(frozen=True)
class Document:
    """A sample's share of a sequence."""

    source: str
    key: str
    length: int  # tokens
    num_tiles: int
    shown: int | None  # number of the `ShownSample`


@dataclass(frozen=True)
class PlannedSequence:
    step: int
    number: int
    documents: list[Document]

    @property
    def num_tokens(self) -> int:
        return sum(document.length for document in self.documents)

    @property
    def num_tiles(self) -> int:
        return sum(document.num_tiles for document in self.documents)


@dataclass(frozen=True)
class Rejected:
    """Samples of a source that indexing left out for the same reason."""

    source: str
    reason: str
    count: int
    example: SkippedSample | None  # the first; None: it stands far down in a long list


@dataclass(frozen=True)
class Preview:
    config: RunConfig
    samples: list[ShownSample]
    sequences: list[PlannedSequence]
    stats: BlendStats  # of the whole run
    rejected: list[Rejected]

    @property
    def max_tiles(self) -> int:
        """Tiles that a sequence has room for."""
        stage = self.config.stage
        visual = VisualLayout.from_config(self.config)
        return visual.num_fitting_tiles(stage.sequence_length, stage.max_tiles_per_sequence)


def build_preview(config: RunConfig, num_samples: int) -> Preview:
    """The first `num_samples` samples in training order, and the sequences that hold them.

    Fewer where the data end before.

    Raises:
        DataError: no usable data; see `open_indexes` and `Planner`.
    """
    encoder = SampleEncoder.from_config(config)
    indexes = open_indexes(config, encoder)
    planner = Planner(config, indexes)
    parsers = {index.source: index.parser for index in indexes}
    reader = MicroBatchReader(config, encoder, parsers)
    samples: list[ShownSample] = []
    sequences: list[PlannedSequence] = []
    for step in itertools.count(1):
        packs = planner.next_step()
        if packs is None:
            break
        for sequence, pack in enumerate(packs):
            documents = []
            for draw in pack.draws:
                shown = None
                if len(samples) < num_samples:
                    shown = len(samples) + 1
                    place = (shown, step, sequence)
                    samples.append(_show(config, planner, reader, encoder, draw, place))
                index = planner.sources[draw.source].index
                key = index.key(draw.row)
                documents.append(Document(index.source, key, draw.length, draw.num_tiles, shown))
            if len(sequences) < _MAX_SEQUENCES or any(d.shown for d in documents):
                sequences.append(PlannedSequence(step, sequence, documents))
        if len(samples) == num_samples and len(sequences) >= _MIN_SEQUENCES:
            break
    stats = blend_stats(config, indexes=indexes)
    rejected = [entry for index in indexes for entry in _rejected(index)]
    return Preview(config, samples, sequences, stats, rejected)


def _show(
    config: RunConfig,
    planner: Planner,
    reader: MicroBatchReader,
    encoder: SampleEncoder,
    draw: Draw,
    place: tuple[int, int, int],
) -> ShownSample:
    planned = planner.sources[draw.source]
    index, row = planned.index, draw.row
    request = sample_request(planned, draw)
    sample = ShownSample(
        *place,
        source=index.source,
        key=index.key(row),
        task=index.task(row),
        kind=index.kind(row),
        plan=draw,
        all_tiles=planned.max_num_tiles,
        all_turns=int(index.turn_starts[row + 1] - index.turn_starts[row]),
        num_variants=int(index.choice_starts[row + 1] - index.choice_starts[row]),
        loss_weight=request.loss_weight,
    )
    try:
        encoded, tiles = reader.read_sample(request)
    except SampleError as error:
        return _replace(sample, problem=error)
    first = int(index.image_starts[row])
    sizes = [
        None
        if request.num_frames
        else (int(index.image_width[first + i]), int(index.image_height[first + i]))
        for i in range(len(request.grids))
    ]
    return _replace(
        sample,
        images=list(_split_tiles(encoder.visual, sizes, request.grids, tiles)),
        spans=split_tokens(encoded, encoder, config.model.image_token),
        beside=describe_beside(encoder.visual, encoded.beside),
    )


def _replace(sample: ShownSample, **changes: object) -> ShownSample:
    return ShownSample(**{**vars(sample), **changes})


def _split_tiles(
    visual: VisualLayout,
    sizes: list[tuple[int, int] | None],
    grids: list[Grid],
    tiles: NDArray[np.uint8],
) -> Iterator[ShownImage]:
    start = 0
    for size, grid in zip(sizes, grids, strict=True):
        stop = start + visual.num_tiles(grid)
        is_padded = visual.tiling != "stretch"
        yield ShownImage(size, grid, visual.tags(grid), tiles[start:stop], is_padded)
        start = stop
    assert start == len(tiles)


def _rejected(index: SourceIndex) -> Iterator[Rejected]:
    examples: dict[str, SkippedSample] = {}
    for sample in itertools.islice(index.iterate_rejected(), _MAX_EXAMPLES_READ):
        examples.setdefault(sample.reason, sample)
    for reason, count in index.num_rejected.items():
        yield Rejected(index.source, reason, count, examples.get(reason))


def describe(sample: ShownSample) -> list[str]:
    """What there is to say about a sample's use, in a few words each."""
    plan = sample.plan
    facts = [] if sample.task in ("", sample.kind) else [f"task {sample.task}"]
    facts.append(sample.kind)
    facts += [
        f"pass {plan.epoch + 1}",
        f"{plan.length:,} tokens",
        f"{plan.num_tiles:,} {'tile' if plan.num_tiles == 1 else 'tiles'}",
    ]
    if sample.num_variants:
        facts.append(f"variant {plan.variant + 1} of {sample.num_variants}")
    if sample.loss_weight != 1:
        facts.append(f"loss weight {sample.loss_weight:g}")
    return facts


def describe_cuts(sample: ShownSample) -> list[str]:
    """How a sample was shortened, if it was."""
    plan, cuts = sample.plan, []
    if plan.shortened_tiles:
        limits = f"{plan.max_num_tiles} per image instead of {sample.all_tiles}"
        cuts.append(f"fewer tiles: at most {limits}")
    if plan.cut_turns:
        cuts.append(f"turns cut: the first {plan.num_turns} of {sample.all_turns} are kept")
    return cuts


def describe_image(image: ShownImage) -> str:
    if image.size is None:
        return "frame of the video → 1 tile"
    (width, height), (columns, rows) = image.size, image.grid
    tiles = f"{columns} × {rows} tiles" if columns * rows > 1 else "1 tile"
    thumbnail = " and the thumbnail" if image.has_thumbnail else ""
    return f"{width:,} × {height:,} pixels → {tiles}{thumbnail}"
