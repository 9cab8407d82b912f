"""Keys and values of questions that are being answered, and attention that reads them.

Rows of one length stand together on a shelf, so that a step's attention is one call per shelf, not
one per question, and a short question does not take the memory of a long one. Shelves grow and
shrink by rows; what a call sees of a row grows by blocks of `WIDTH_BLOCK` tokens, so that shapes
change every so many tokens, not with every one.

Keys are kept rotated. Shape suffixes: b questions of the step, n rows of a shelf, g key/value
heads, r query heads of each of them, h all query heads, k cached positions, d channels per head,
s tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from megatron.core.inference.contexts import BaseInferenceContext
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor
from torch.nn import functional

from nvlm import platform
from nvlm.batch import Run
from nvlm.model.parts.eviction import evict
from nvlm.model.parts.token_kinds import TokenKinds

Owner = TypeVar("Owner")
# What a step reads of its rows is a multiple of this: a multiple of what kernels want of a mask.
WIDTH_BLOCK = 64
_SHORTEST_ROW = 256


def row_length(num_tokens: int) -> int:
    """The length of the row that `num_tokens` take: 256, 384, 512, 768, 1024, 1536, ...

    Few lengths, of which each wastes at most a third of a row.
    """
    length = _SHORTEST_ROW
    while length < num_tokens:
        is_power_of_two = length & (length - 1) == 0
        length = length // 2 * 3 if is_power_of_two else length // 3 * 4
    return length


@dataclass(frozen=True)
class LayerShape:
    """What a layer of this process keeps of a token, twice: a key and a value.

    key: Megatron-core's number of the layer, from 1 over all stages; for its cross-attention, which
        keeps what the question has beside its tokens, `beside_key` of that.
    """

    key: int | str
    num_groups: int
    head_dim: int
    dtype: torch.dtype


def beside_key(layer_number: int) -> str:
    return f"beside {layer_number}"


@dataclass
class Shelf(Generic[Owner]):
    """Rows of one length. Those in use come first: row i belongs to `owners[i]`.

    Attributes:
        keys, values: by `LayerShape.key`, each [rows, g, length, d].
    """

    length: int
    layers: Sequence[LayerShape]
    owners: list[Owner] = field(default_factory=list)
    keys: dict[int | str, Tensor] = field(default_factory=dict)
    values: dict[int | str, Tensor] = field(default_factory=dict)
    num_rows: int = 0

    def resize(self, num_rows: int) -> None:
        """Have `num_rows` rows, of which those in use keep what they hold."""
        assert num_rows >= len(self.owners)
        num_used, device = len(self.owners), platform.current().device()
        for layer in self.layers:
            shape = (num_rows, layer.num_groups, self.length, layer.head_dim)
            for memory in (self.keys, self.values):
                # Zeros: what is not attended to has weight zero, which does not help against NaN.
                larger = torch.zeros(shape, dtype=layer.dtype, device=device)
                if num_used:
                    larger[:num_used] = memory[layer.key][:num_used]
                memory[layer.key] = larger  # the old ones are freed layer by layer
        self.num_rows = num_rows

    def remove(self, row: int) -> None:
        """The last row in use takes the place of this one."""
        last = len(self.owners) - 1
        if row != last:
            for memory in (self.keys, self.values):
                for rows in memory.values():
                    rows[row] = rows[last]
            self.owners[row] = self.owners[last]
        self.owners.pop()


class KeyValueCache(Generic[Owner]):
    """The shelves of this process's layers."""

    def __init__(self, layers: Sequence[LayerShape], max_tokens: int):
        """`max_tokens`: of all rows together."""
        self.max_tokens = max_tokens
        self._layers = layers
        self._shelves: dict[int, Shelf[Owner]] = {}

    @property
    def num_tokens(self) -> int:
        """Of all rows in use, at their full length."""
        return sum(shelf.length * len(shelf.owners) for shelf in self._shelves.values())

    @property
    def num_allocated_tokens(self) -> int:
        return sum(shelf.length * shelf.num_rows for shelf in self._shelves.values())

    def shelves(self) -> list[Shelf[Owner]]:
        """Those with rows in use, the same in the same order on every process."""
        return [shelf for _, shelf in sorted(self._shelves.items()) if shelf.owners]

    def fits(self, num_tokens: int) -> bool:
        return self.num_tokens + row_length(num_tokens) <= self.max_tokens

    def take(self, owner: Owner, num_tokens: int) -> tuple[Shelf[Owner], int]:
        """A row with room for `num_tokens`: its shelf and number, for now (see `Shelf.remove`)."""
        assert self.fits(num_tokens), "ask before"
        length = row_length(num_tokens)
        shelf = self._shelves.setdefault(length, Shelf(length, self._layers))
        if len(shelf.owners) == shelf.num_rows:
            self._grow(shelf)
        shelf.owners.append(owner)
        return shelf, len(shelf.owners) - 1

    def _grow(self, shelf: Shelf[Owner]) -> None:
        """Twice the rows where there is room, one more otherwise; others give up what is unused."""
        wanted = max(1, shelf.num_rows)
        if self.num_allocated_tokens + wanted * shelf.length > self.max_tokens:
            for other in self._shelves.values():
                if other is not shelf and other.num_rows > len(other.owners):
                    other.resize(len(other.owners))
            room = (self.max_tokens - self.num_allocated_tokens) // shelf.length
            wanted = min(wanted, room)
        shelf.resize(shelf.num_rows + wanted)


class _Rotation:
    """Cosines and sines of some positions, computed for the first layer and used by all."""

    def __init__(self) -> None:
        self._factors: tuple[Tensor, Tensor] | None = None

    def factors(self, angles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if self._factors is None:
            self._factors = angles.cos().to(dtype), angles.sin().to(dtype)
        return self._factors


def rotated(tokens: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Megatron-core's rotary embedding, not interleaved, of whole heads."""
    first, second = tokens.chunk(2, dim=-1)
    return tokens * cosine + torch.cat((-second, first), dim=-1) * sine


class Prefill(BaseInferenceContext):
    """One question's prompt goes into its row of the cache."""

    def __init__(
        self,
        shelf: Shelf,
        row: int,
        max_positions: int,
        num_kept: int | None = None,
        is_visual_s: Tensor | None = None,
        image_runs: Sequence[Run] = (),
        kinds: TokenKinds | None = None,
    ):
        """
        Args:
            max_positions: the number of angles that Megatron-core computes.
            num_kept: how many keys and values stay, in the row's first places; the others are
                merged into them (`evict`). None: all.
            is_visual_s: which of the prompt's tokens are images'; needed with `num_kept`.
            image_runs: see `SdpaAttention`.
            kinds: of the prompt's tokens, where layers have weights of images.
        """
        super().__init__(materialize_only_last_token_logits=True)
        # What Megatron-core asks of a context.
        self.max_sequence_length = max_positions
        self.sequence_len_offset = 0
        self._shelf, self._row = shelf, row
        self._num_kept, self._is_visual_s = num_kept, is_visual_s
        self._image_runs = image_runs
        self.kinds = kinds
        self._rotation = _Rotation()

    def is_static_batching(self) -> bool:
        return True

    def is_decode_only(self) -> bool:
        return False

    def attend(
        self,
        layer: SelfAttention,
        query_s1hd: Tensor,
        key_s1gd: Tensor,
        value_s1gd: Tensor,
        angles_k11d: Tensor,
    ) -> Tensor:
        """[s, 1, h*d]: every token sees those before it, by the layer's own attention, and an
        image's where they see both ways those of its run."""
        num_tokens = query_s1hd.shape[0]
        factors = self._rotation.factors(angles_k11d[:num_tokens], query_s1hd.dtype)
        query, key = rotated(query_s1hd, *factors), rotated(key_s1gd, *factors)
        number = layer.layer_number
        keys, values = key[:, 0].transpose(0, 1), value_s1gd[:, 0].transpose(0, 1)
        if self._num_kept is not None and self._num_kept < num_tokens:
            assert self._is_visual_s is not None
            scaled = query[:, 0] * _scale(layer, query.shape[-1])
            by_head = scaled.unflatten(1, (len(keys), -1)).permute(1, 2, 0, 3)
            keys, values = evict(by_head, keys, values, self._is_visual_s, self._num_kept)
        self._shelf.keys[number][self._row, :, : keys.shape[1]] = keys
        self._shelf.values[number][self._row, :, : keys.shape[1]] = values
        core: Any = layer.core_attention
        causal = AttnMaskType.causal
        runs = self._image_runs
        return core(query, key, value_s1gd, None, attn_mask_type=causal, image_runs=runs)

    def keep_beside(self, layer_number: int, key_kgd: Tensor, value_kgd: Tensor) -> None:
        """What the layer's cross-attention will read with each later token."""
        name, num_tokens = beside_key(layer_number), len(key_kgd)
        self._shelf.keys[name][self._row, :, :num_tokens] = key_kgd.transpose(0, 1)
        self._shelf.values[name][self._row, :, :num_tokens] = value_kgd.transpose(0, 1)


def _scale(layer: SelfAttention, head_dim: int) -> float:
    """Of attention's scores: the layer's, or what attention takes where it says none."""
    scale = getattr(layer.core_attention, "softmax_scale", None)
    return head_dim**-0.5 if scale is None else scale


@dataclass(frozen=True)
class ShelfStep:
    """What a step does on one shelf: all rows in use get a token each."""

    shelf: Shelf
    rows: Tensor  # [n] int64: 0, 1, 2, ...
    places: Tensor  # [n] int64, of the new tokens in their rows
    mask: Tensor  # [n, 1, 1, k]: 0 where a row's token looks, -inf elsewhere
    # The same of what is beside, of as many columns as any row has there; None where none has any.
    mask_beside: Tensor | None
    is_blind: Tensor  # [n, 1, 1] bool: whose rows have nothing beside


class Decode(BaseInferenceContext):
    """The next token of every open question, in the order of shelves and rows."""

    def __init__(
        self,
        lengths: Sequence[tuple[Shelf, list[int]]],
        places: Tensor,
        positions: Tensor,
        dtype: torch.dtype,
        max_positions: int,
        beside: tuple[Sequence[int], Tensor] | None = None,
    ):
        """
        Args:
            lengths: of each shelf with rows in use, the keys that each row has so far.
            places: [b] int64, the same numbers on the device.
            positions: [b] int64, the tokens that each question has so far: more, where not all of
                a prompt's keys were kept.
            dtype: the layers'.
            max_positions: see `Prefill`.
            beside: tokens that each question has beside its own, and the same numbers on the
                device; None where none has any.
        """
        super().__init__(materialize_only_last_token_logits=True)
        self.sequence_len_offset = 0
        self.max_sequence_length = max_positions
        self._positions = positions
        self._rotation = _Rotation()
        self._steps: list[ShelfStep] = []
        start = 0
        for shelf, of_rows in lengths:
            part = slice(start, start + len(of_rows))
            here = places[part]
            mask = _first_columns(here + 1, max(of_rows) + 1, shelf.length, dtype)
            mask_beside, is_blind = None, torch.ones_like(here, dtype=torch.bool)
            if beside is not None and (most := max(beside[0][part])):
                num_beside = beside[1][part]
                is_blind = num_beside == 0
                # Of nothing there is no softmax: who has nothing reads a column, for nothing.
                mask_beside = _first_columns(num_beside.clamp(min=1), most, shelf.length, dtype)
            rows = torch.arange(len(of_rows), device=positions.device)
            step = ShelfStep(shelf, rows, here, mask, mask_beside, is_blind[:, None, None])
            self._steps.append(step)
            start = part.stop

    def is_static_batching(self) -> bool:
        return True

    def is_decode_only(self) -> bool:
        return True

    def attend(
        self,
        layer: SelfAttention,
        query_1bhd: Tensor,
        key_1bgd: Tensor,
        value_1bgd: Tensor,
        angles_k11d: Tensor,
    ) -> Tensor:
        """[1, b, h*d]: every token sees its question's earlier ones and itself."""
        angles = angles_k11d[:, 0].index_select(0, self._positions)[None]
        factors = self._rotation.factors(angles, query_1bhd.dtype)
        query, key = rotated(query_1bhd, *factors)[0], rotated(key_1bgd, *factors)[0]
        value = value_1bgd[0]
        outputs, start = [], 0
        for step in self._steps:
            part = slice(start, start + len(step.rows))
            outputs.append(_attend(layer, step, query[part], key[part], value[part]))
            start = part.stop
        out_bhd = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        return out_bhd.flatten(1)[None]

    def attend_beside(self, layer_number: int, query_bhd: Tensor) -> Tensor:
        """[b, h*d]: every token sees all that its question has beside; zeros where that is none."""
        outputs, start = [], 0
        for step in self._steps:
            part = slice(start, start + len(step.rows))
            outputs.append(_attend_beside(layer_number, step, query_bhd[part]))
            start = part.stop
        return torch.cat(outputs).flatten(1)


def _first_columns(num_seen: Tensor, most: int, length: int, dtype: torch.dtype) -> Tensor:
    """[n, 1, 1, k]: 0 in each row's first columns, `most` of them at most, -inf in the others."""
    width = min(-(-most // WIDTH_BLOCK) * WIDTH_BLOCK, length)
    columns = torch.arange(width, device=num_seen.device)
    unseen = columns[None] >= num_seen[:, None]
    # As numbers: of a mask of bits each layer would make these anew.
    mask = torch.zeros(unseen.shape, dtype=dtype, device=num_seen.device)
    return mask.masked_fill_(unseen, float("-inf"))[:, None, None]


def _attend_beside(layer_number: int, step: ShelfStep, query_nhd: Tensor) -> Tensor:
    """[n, h, d]"""
    if step.mask_beside is None:
        return torch.zeros_like(query_nhd)
    name, num_rows, width = beside_key(layer_number), len(step.rows), step.mask_beside.shape[-1]
    keys, values = (
        memory[name][:num_rows, :, :width] for memory in (step.shelf.keys, step.shelf.values)
    )
    out_ngrd = functional.scaled_dot_product_attention(
        query_nhd.unflatten(1, (keys.shape[1], -1)), keys, values, attn_mask=step.mask_beside
    )
    return out_ngrd.flatten(1, 2).masked_fill(step.is_blind, 0)


def _attend(
    layer: SelfAttention, step: ShelfStep, query_nhd: Tensor, key_ngd: Tensor, value: Tensor
) -> Tensor:
    """[n, h, d]. The query heads of a key/value head are its queries, so that each is read once."""
    keys = step.shelf.keys[layer.layer_number]
    values = step.shelf.values[layer.layer_number]
    keys[step.rows, :, step.places] = key_ngd
    values[step.rows, :, step.places] = value
    num_rows, num_groups, width = len(step.rows), key_ngd.shape[1], step.mask.shape[-1]
    out_ngrd = functional.scaled_dot_product_attention(
        query_nhd.unflatten(1, (num_groups, -1)),
        keys[:num_rows, :, :width],
        values[:num_rows, :, :width],
        attn_mask=step.mask,
        scale=getattr(layer.core_attention, "softmax_scale", None),
    )
    return out_ngrd.flatten(1, 2)
