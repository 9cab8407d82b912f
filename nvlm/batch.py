"""The contract between data and model: what one micro-batch is, and the checks that it holds.

Shape suffixes: t tokens in the micro-batch (micro_batch_size x sequence_length), n tiles,
d documents (samples, and stretches of padding).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from nvlm.errors import DataError
from nvlm.sizes.visual import Grid, VisualLayout

Batch = TypeVar("Batch")

# Label of a position that is not trained on.
IGNORED_LABEL = -100


@dataclass(frozen=True)
class SkippedSample:
    """A sample that was left out of training, as `skipped.jsonl` names it."""

    source: str
    shard: str
    key: str
    reason: str
    detail: str


# Fewer than this are never too many: a share of few samples says little.
_MIN_SKIPPED = 20


def too_many_skipped(num_skipped: int, num_samples: int, max_share: float) -> bool:
    """Whether more than `data.max_skipped_share` of the samples was left out."""
    return num_skipped >= _MIN_SKIPPED and num_skipped > max_share * num_samples


# (first token, end) of a stretch of image tokens.
Run = tuple[int, int]


def runs_of(image_positions: Sequence[int]) -> tuple[Run, ...]:
    """The stretches of image tokens with no other token between: tiles, or images without tags.

    Args:
        image_positions: where image tokens stand, increasing.
    """
    runs: list[Run] = []
    for position in image_positions:
        start = runs.pop()[0] if runs and runs[-1][1] == position else position
        runs.append((start, position + 1))
    return tuple(runs)


# (first token, end; first token beside, end): what a stretch of the decoder's tokens sees.
Sight = tuple[int, int, int, int]


@dataclass(frozen=True)
class Beside:
    """What the decoder reads of a micro-batch by cross-attention, beside its own row.

    NVLM-X: every tile's visual tokens. NVLM-H: of every tile but the thumbnails the tokens of its
    text tag, and then its visual tokens. One tile after another, one image after another; k tokens
    in all, of which there may be none.
    """

    tokens: Tensor  # [1, k] int64; at the places of visual tokens the placeholder's id
    image_positions: Tensor  # [visual tokens] int64, increasing
    tiles: Tensor  # [m] int64, increasing: which of the micro-batch's tiles these are
    # In host memory. Of each stretch of tokens that see the same, in order; those that see nothing
    # are in none. A tag of NVLM-X sees its own tile. Every other token sees all that is beside of
    # its document's images whose last tag or placeholder stands before it.
    sights: tuple[Sight, ...]

    def each(self, change: Callable[[Tensor], Tensor]) -> Beside:
        """The same with every tensor changed."""
        return _each(self, change)


@dataclass(frozen=True)
class Gated:
    """What the gate of `stage.alignment` reads for the vectors of a micro-batch, g of them.

    The vector of a document with images is mixed of what stands before its first answer: text, and
    the tiles that show whole images.
    """

    positions: Tensor  # [g] int64, increasing; where in the row they stand
    of_tokens: Tensor  # [t] int64; for which of them a token of the row is read, -1: for none
    of_tiles: Tensor  # [n] int64; the same of the micro-batch's tiles

    def each(self, change: Callable[[Tensor], Tensor]) -> Gated:
        """The same with every tensor changed."""
        return _each(self, change)


@dataclass(frozen=True)
class RowPart:
    """What a context-parallel rank has of a row, as `nvlm.parallel.context` cuts it.

    Every document of the row gets some padding at its end first; so does the row.
    """

    sources: Tensor  # [t] int64; where in the whole row each token here stands
    is_padding: Tensor  # [t] bool; True where there is none in the whole row
    image_positions: Tensor  # [image tokens here] int64; where here they stand
    # [image tokens here] int64; which they are of the image tokens of all ranks, one rank's after
    # the other's, each rank's as many as the most.
    image_rows: Tensor
    # [t of all ranks] int64; where in all ranks' parts, one after the other, the padded row's
    # tokens are.
    row_order: Tensor
    cu_seqlens: Tensor  # [d + 1] int32; of the padded row
    document_starts: tuple[int, ...]  # the same
    num_tiles: tuple[int, ...]  # that each context-parallel rank encodes

    def each(self, change: Callable[[Tensor], Tensor]) -> RowPart:
        """The same with every tensor changed."""
        return _each(self, change)


@dataclass(frozen=True)
class MicroBatch:
    """Packed sequences, one after another, as a single row.

    Every sample is a document: attention does not cross documents and positions restart in each.
    What is left of a sequence is one document of padding, so the row is covered without gaps.
    """

    tokens: Tensor  # [1, t] int64; at image positions the placeholder's id
    labels: Tensor  # [1, t] int64; already shifted left by one, IGNORED_LABEL where not trained
    position_ids: Tensor  # [1, t] int64
    image_mask: Tensor  # [1, t] bool; True where an image embedding overwrites the token's
    cu_seqlens: Tensor  # [d + 1] int32; starts of the documents, and t
    # [n, 3, image_size, image_size] uint8, in order of their placeholders; none (n = 0) on pipeline
    # stages that do not encode, and where `features` or a `TileShare` are in their place.
    tiles: Tensor
    sample_keys: list[str] = field(default_factory=list)
    num_real_tokens: int = 0  # tokens of samples, without padding
    num_real_token_pairs: int = 0  # sum of the samples' squared lengths, as attention costs
    # [1, t] float32; what each label counts in the loss, 0 where it is not trained. None: 1 each.
    loss_weights: Tensor | None = None
    # [1, t] int32; the number of each token's source in `StepBatch.epochs`, -1 in padding. None:
    # sources are not told apart.
    source_numbers: Tensor | None = None
    # [n, patches of a tile, channels]: the tiles as the connector reads them, encoded beforehand.
    features: Tensor | None = None
    # With context parallelism, this rank's part of the row. `tiles` and `features` are then those
    # that this rank encodes; all else is of the whole row, and `on_this_rank` of its part.
    part: RowPart | None = None
    # None: the decoder reads nothing but its row (`model.fusion: decoder_only`).
    beside: Beside | None = None
    # None: no vector is mixed.
    gated: Gated | None = None
    # What `cu_seqlens` and `image_mask` say, found while they are in host memory: to ask a device
    # for numbers, or for how many elements are set, is to wait for all that it has to do.
    document_starts: tuple[int, ...] = ()
    image_positions: Tensor = None  # type: ignore[assignment]  # [image tokens] int64
    image_runs: tuple[Run, ...] | None = None  # of the whole row, whatever `part` is
    # With `model.deepstack: tiles`: (columns, rows) of each image's tiles, in order.
    grids: tuple[Grid, ...] = ()

    def __post_init__(self) -> None:
        if not self.document_starts:
            object.__setattr__(self, "document_starts", tuple(self.cu_seqlens.tolist()))
        if self.image_positions is None:
            object.__setattr__(self, "image_positions", self.image_mask[0].nonzero()[:, 0])
        if self.image_runs is None:
            object.__setattr__(self, "image_runs", runs_of(self.image_positions.tolist()))

    @property
    def num_tiles(self) -> int:
        if self.part is not None:
            return sum(self.part.num_tiles)
        return self.tiles.shape[0] if self.features is None else self.features.shape[0]

    @property
    def max_document_length(self) -> int:
        return max(end - start for start, end in pairwise(self.document_starts))

    @property
    def row_length(self) -> int:
        """Tokens of all context-parallel ranks, with the padding that they need."""
        return self.tokens.shape[1] if self.part is None else len(self.part.row_order)

    def on_this_rank(self) -> MicroBatch:
        """The same batch with `part`'s tokens alone; without a part, as it is."""
        part = self.part
        if part is None:
            return self

        def cut(tensor_1t: Tensor | None, padding: int) -> Any:
            if tensor_1t is None:
                return None
            return tensor_1t[:, part.sources].masked_fill(part.is_padding, padding)

        return replace(
            self,
            tokens=self.tokens[:, part.sources],
            labels=cut(self.labels, IGNORED_LABEL),
            position_ids=self.position_ids[:, part.sources],
            image_mask=cut(self.image_mask, False),
            cu_seqlens=part.cu_seqlens,
            loss_weights=cut(self.loss_weights, 0),
            source_numbers=cut(self.source_numbers, -1),
            document_starts=part.document_starts,
            image_positions=part.image_positions,
        )

    def loss_mask(self) -> Tensor:
        """[1, t] float32: 1 where the label is trained."""
        return (self.labels != IGNORED_LABEL).float()

    def padding_mask(self) -> Tensor | None:
        """[1, t] bool: True in padding; None where that is not known."""
        return None if self.source_numbers is None else self.source_numbers < 0

    def weights(self) -> Tensor:
        """[1, t] float32: what each label counts in the loss."""
        return self.loss_mask() if self.loss_weights is None else self.loss_weights

    def each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """The same batch with every tensor changed."""
        part = self.part and self.part.each(change)
        beside = self.beside and self.beside.each(change)
        gated = self.gated and self.gated.each(change)
        return _each(replace(self, part=part, beside=beside, gated=gated), change)

    def to(self, device: torch.device) -> MicroBatch:
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def without_tiles(self) -> MicroBatch:
        """The same batch for who does not encode them."""
        # Not a view of no tiles: that would keep all of them, and take them along when it is sent.
        return replace(self, tiles=self.tiles.new_empty(0, *self.tiles.shape[1:]))


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    changed = {n: change(v) for n, v in values.items() if isinstance(v, Tensor)}
    return replace(batch, **changed)  # type: ignore[type-var]


@dataclass(frozen=True)
class TileShare:
    """The tiles of a step that this process encodes: some consecutive ones of its data rank's."""

    tiles: Tensor  # [m, 3, image_size, image_size] uint8
    num_tiles: list[int]  # of each micro-batch of the step, whoever encodes them
    sizes: list[int]  # tiles of each share, this one's among them, in their order


# A tensor on its way to the device, and what sends one of the host there: a platform's
# `copied_ahead`.
Arriving = Callable[[], Tensor]
CopyAhead = Callable[[Tensor], Arriving]


@dataclass(frozen=True)
class StepBatch:
    """One data-parallel rank's share of a training step."""

    micro_batches: list[MicroBatch]
    skipped: list[SkippedSample]
    # Position in the data after this step, saved with the step's checkpoint. JSON values only.
    data_state: dict
    # Of the whole global step, the same on every rank: "shortened_tiles/SOURCE" (samples that got
    # fewer tiles to fit) and "cut_turns/SOURCE" (that lost their last turns) -> samples.
    shortened: dict[str, int] = field(default_factory=dict)
    # Of the whole run, the same on every rank: every source, in the order of their numbers ->
    # passes over its samples up to and with this step.
    epochs: dict[str, float] = field(default_factory=dict)
    # Of this rank: "SOURCE/WHAT" -> changes made to samples so that they could be used.
    repaired: dict[str, int] = field(default_factory=dict)
    # Of each micro-batch, in the place of its own; not sent to other processes.
    tiles_ahead: list[Arriving] | None = None
    # With `parallel.vision: tile_parallel`, until its features are there.
    tile_share: TileShare | None = None


@dataclass(frozen=True)
class Findings:
    """What a process found out about a step's samples, of which it has read a part.

    Samples are numbered through the data rank's step, in the order of its sequences.
    """

    # (sample, number of the image in it or -1 for its text, the sample with the reason)
    failures: list[tuple[int, int, SkippedSample]]
    repaired: dict[int, dict[str, int]]  # sample -> "SOURCE/WHAT" -> changes made to it
    num_tiles: int  # of the whole step, as planned; all processes have to agree


@dataclass(frozen=True)
class WholeStep:
    """A step of a data rank, known in full where its text is read; its tiles are elsewhere."""

    step: StepBatch
    num_tiles: list[int]  # of each micro-batch, without those of samples that were left out
    dropped: list[tuple[int, int]]  # tiles (from, to) that were planned and are left out


@dataclass(frozen=True)
class StepPart:
    """What one process of a replica has read of a step, with `parallel.vision: tile_parallel`."""

    # [m, 3, image_size, image_size] uint8: its share of the step's tiles, as many as planned; those
    # of images that could not be read have any values.
    tiles: Tensor | Arriving
    findings: Findings
    # Puts the step together from what all processes found; where text is read, else None.
    assemble: Callable[[list[Findings]], WholeStep] | None = None


def check_micro_batch(
    batch: MicroBatch, visual: VisualLayout, num_tiles: int | None = None
) -> None:
    """Raise `DataError` naming the samples when placeholders, tiles and documents disagree.

    Args:
        num_tiles: where the tiles are elsewhere.
    """
    samples = ", ".join(batch.sample_keys) or "(no samples)"
    num_tiles = batch.num_tiles if num_tiles is None else num_tiles
    if visual.stacks_tiles:
        num_tiles = visual.num_stacked_on(batch.grids, num_tiles, samples)
    _check_placeholders(int(batch.image_mask.sum()), num_tiles, batch.beside, visual, samples)
    num_tokens = batch.tokens.shape[1]
    starts = batch.cu_seqlens
    covered = starts[0] == 0 and starts[-1] == num_tokens and bool((starts[1:] > starts[:-1]).all())
    if not covered:
        raise DataError(
            f"documents {starts.tolist()} do not cover {num_tokens} tokens in samples {samples}"
        )
    if batch.beside is not None:
        _check_sights(batch.beside, starts.tolist(), samples)


def _check_placeholders(
    num_placeholders: int, num_tiles: int, beside: Beside | None, visual: VisualLayout, samples: str
) -> None:
    size = visual.num_tokens_per_tile
    if (beside is None) != (visual.fusion == "decoder_only"):
        raise DataError(
            f"a row {'' if beside else 'not '}beside the decoder's with model.fusion "
            f"{visual.fusion} in samples {samples}"
        )
    num_beside = 0 if beside is None else len(beside.tiles)
    if num_placeholders != (num_tiles - num_beside) * size:
        raise DataError(
            f"{num_placeholders} image placeholders for {num_tiles - num_beside} tiles x {size} "
            f"tokens in samples {samples}"
        )
    if beside is None:
        return
    if len(beside.image_positions) != num_beside * size:
        raise DataError(
            f"{len(beside.image_positions)} image placeholders beside the decoder's row for "
            f"{num_beside} tiles x {size} tokens in samples {samples}"
        )
    tiles = beside.tiles.tolist()
    if tiles != sorted(set(tiles)) or (tiles and not 0 <= tiles[0] <= tiles[-1] < num_tiles):
        raise DataError(f"tiles {tiles} beside, of {num_tiles}, in samples {samples}")


def _check_sights(beside: Beside, starts: list[int], samples: str) -> None:
    """Sights follow one another, each within a document, and no two documents see the same."""
    previous = end_of_others = seen = 0
    document = -1
    for sight in beside.sights:
        start, end, first, last = sight
        own = bisect_right(starts, start) - 1
        if own != document:
            document, end_of_others = own, seen
        seen = max(seen, last)
        if not (
            previous <= start < end <= starts[min(own + 1, len(starts) - 1)]
            and end_of_others <= first < last <= beside.tokens.shape[1]
        ):
            raise DataError(
                f"tokens {start} to {end} see {first} to {last} beside them, which is out of order "
                f"or not their document's, of those that start at {starts}, in samples {samples}"
            )
        previous = end
