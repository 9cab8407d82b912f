"""One process's part of answering: its stage of the model, and its cache of all open questions.

Every process of a model replica has a `Decoder` and gives it the same work in the same order. What
depends on that work alone, such as rows of the cache and draws, is then the same everywhere. With a
pipeline hidden states travel from stage to stage, and the last stage's choice is sent to all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nvlm import platform
from nvlm.batch import Beside, Gated, runs_of
from nvlm.config.schema import RunConfig
from nvlm.data.text.alignment import EncodedAlignment
from nvlm.data.text.beside import EncodedBeside
from nvlm.errors import DataError
from nvlm.generate.request import Sampling
from nvlm.generate.sampling import Drawing, choose_tokens
from nvlm.generate.thrift import Thrift
from nvlm.model.nvlm_d import NVLMD
from nvlm.model.parts.cache import Decode, KeyValueCache, Prefill, Shelf
from nvlm.model.parts.token_kinds import TokenKinds
from nvlm.model.rows import PromptImages, sights_of
from nvlm.sizes.visual import Grid, VisualLayout

# torch's own. Another one makes a plan for every new shape: see nvlm/platform/attention.py.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Begun:
    """A question whose answer begins."""

    key: str
    tokens: NDArray[np.int64]  # [t]
    tiles: Tensor  # [n, 3, image_size, image_size] uint8; on later stages n is 0
    num_tiles: int
    sampling: Sampling
    beside: EncodedBeside | None = None  # of NVLM-X and NVLM-H
    alignment: EncodedAlignment | None = None  # of what a gate mixes a vector
    grids: tuple[Grid, ...] = ()  # of its images, with `model.deepstack: tiles`

    @property
    def num_beside(self) -> int:
        return num_tokens_beside(self.beside)


@dataclass(frozen=True)
class Work:
    """What one step does, in this order."""

    ended: tuple[str, ...] = ()  # their rows are free again
    begun: tuple[Begun, ...] = ()  # the others go on


@dataclass
class _Open:
    """A question with a row in the cache."""

    key: str
    drawing: Drawing
    num_tokens: int  # that the model has read
    num_cached: int  # keys and values of them; fewer where `Thrift` says so
    num_beside: int  # that it has beside its tokens, which each further one sees
    last: int  # the token that follows them


@dataclass(frozen=True)
class _Inputs:
    """Of one pass; see `NVLMD.generate_step`."""

    tokens: Tensor
    positions: Tensor
    num_beside: int  # rows beside, which travel from stage to stage with those of the tokens
    sights: Tensor | None
    images: PromptImages | None = None


@dataclass
class Decoder:
    """The open questions of a replica, as this process's stage has them.

    Attributes:
        model: this process's stage, in evaluation mode.
        max_cache_tokens: see `KeyValueCache`.
        thrift: what is kept of prompts; they come with the placeholders that this leaves them.
    """

    model: NVLMD
    config: RunConfig
    image_id: int
    max_cache_tokens: int
    thrift: Thrift = field(default_factory=Thrift)
    cache: KeyValueCache[_Open] = field(init=False)

    def __post_init__(self) -> None:
        self.cache = KeyValueCache(self.model.cached_layers(), self.max_cache_tokens)

    @torch.no_grad()
    def run(self, work: Work) -> dict[str, int]:
        """The next token of each question, by key, on every process.

        The host waits for the device once.
        """
        for key in work.ended:
            self._end(key)
        going_on = self.cache.shelves()
        rows = [(shelf, [row.num_cached for row in shelf.owners]) for shelf in going_on]
        questions = [row for shelf in going_on for row in shelf.owners]
        chosen = [self._decode(rows, questions)] if questions else []
        for begun in work.begun:
            question, token = self._begin(begun)
            questions.append(question)
            chosen.append(token)
        if not chosen:
            return {}
        tokens = self._shared(torch.cat(chosen)).tolist()
        for question, token in zip(questions, tokens, strict=True):
            question.last = token
        return {question.key: question.last for question in questions}

    def _end(self, key: str) -> None:
        for shelf in self.cache.shelves():
            for row, question in enumerate(shelf.owners):
                if question.key == key:
                    return shelf.remove(row)
        raise AssertionError(f"{key} is not open")

    def _begin(self, begun: Begun) -> tuple[_Open, Tensor]:
        """The question with its row, and its first token [1]."""
        num_tokens = len(begun.tokens)
        num_cached = self.thrift.num_cached(num_tokens)
        num_beside = begun.num_beside
        question = _Open(
            begun.key, Drawing(begun.sampling), num_tokens, num_cached, num_beside, last=-1
        )
        room = max(num_cached + begun.sampling.max_new_tokens, num_beside)
        shelf, row = self.cache.take(question, room)
        device = platform.current().device()
        tokens = _on_device(torch.from_numpy(begun.tokens))[None]
        is_visual = tokens[0] == self.image_id
        places = (begun.tokens == self.image_id).nonzero()[0]
        runs = runs_of(places.tolist()) if self.config.model.sees_both_ways else ()
        kinds = None
        if self.config.model.language.visual_weights != "none":
            kinds = TokenKinds.of(_on_device(torch.from_numpy(places)), num_tokens)
        context = Prefill(shelf, row, self._num_positions, num_cached, is_visual, runs, kinds)
        beside = _row_beside(begun.beside) if num_beside else None
        images = None
        if begun.num_tiles and self.model.pre_process:
            places = _on_device(torch.from_numpy(places))
            tiles, gated = _on_device(begun.tiles), _gated(begun.alignment)
            images = PromptImages(places, tiles, beside, gated, begun.grids)
        positions = torch.arange(num_tokens, device=device)[None]
        num_rows = self.model.num_levels * num_beside
        inputs = _Inputs(tokens, positions, num_rows, sights_of(beside), images)
        return question, self._chosen(context, inputs, [question])

    def _decode(
        self, rows: Sequence[tuple[Shelf[_Open], list[int]]], questions: Sequence[_Open]
    ) -> Tensor:
        numbers = [(q.last, q.num_cached, q.num_tokens, q.num_beside) for q in questions]
        tokens, places, positions, beside = _on_device(torch.tensor(numbers).T.contiguous())
        num_beside = [question.num_beside for question in questions]
        context = Decode(
            rows,
            places,
            positions,
            self.model.config.params_dtype,
            self._num_positions,
            (num_beside, beside) if any(num_beside) else None,
        )
        # Who sees what is in the context.
        sights = torch.zeros(1, 4, dtype=torch.int64) if any(num_beside) else None
        inputs = _Inputs(tokens[:, None], positions[:, None], 0, sights)
        chosen = self._chosen(context, inputs, questions)
        for question in questions:
            question.num_cached += 1
            question.num_tokens += 1
        return chosen

    @property
    def _num_positions(self) -> int:
        return self.config.model.language.max_position_embeddings

    def _chosen(
        self, context: Prefill | Decode, inputs: _Inputs, questions: Sequence[_Open]
    ) -> Tensor:
        """[questions] int64; of no meaning but on the last stage."""
        model, groups = self.model, self.model.language_model.pg_collection
        stage, num_stages = groups.pp.rank(), groups.pp.size()
        tokens = inputs.tokens
        if stage > 0:
            num_rows = tokens.shape[1] + inputs.num_beside
            shape = (num_rows, tokens.shape[0], model.config.hidden_size)
            hidden = torch.empty(shape, dtype=model.config.params_dtype, device=tokens.device)
            dist.recv(hidden, dist.get_global_rank(groups.pp, stage - 1))
            model.set_input_tensor(hidden)
        with sdpa_kernel(_KERNELS):
            output = model.generate_step(
                tokens, inputs.positions, context, inputs.images, inputs.sights
            )
        drawings = [question.drawing for question in questions]
        if stage < num_stages - 1:
            dist.send(output.contiguous(), dist.get_global_rank(groups.pp, stage + 1))
            return tokens.new_empty(len(questions))
        return choose_tokens(output[:, -1], drawings)

    def _shared(self, chosen: Tensor) -> Tensor:
        """The choice of one process of the last stage: others may differ in the last bits."""
        groups = self.model.language_model.pg_collection
        last = groups.pp.size() - 1
        if groups.tp.size() > 1 and groups.pp.rank() == last:
            dist.broadcast(chosen, dist.get_global_rank(groups.tp, 0), group=groups.tp)
        if last > 0:
            dist.broadcast(chosen, dist.get_global_rank(groups.pp, last), group=groups.pp)
        return chosen


def _on_device(tensor: Tensor) -> Tensor:
    here = platform.current()
    return here.pinned(tensor).to(here.device(), non_blocking=True)


def _row_beside(encoded: EncodedBeside | None) -> Beside:
    assert encoded is not None
    return Beside(
        tokens=_on_device(torch.from_numpy(encoded.tokens))[None],
        image_positions=_on_device(torch.from_numpy(encoded.image_mask.nonzero()[0])),
        tiles=_on_device(torch.from_numpy(encoded.tiles)),
        sights=encoded.sights,
    )


def _gated(alignment: EncodedAlignment | None) -> Gated | None:
    """Of a prompt alone in its row."""
    if alignment is None or alignment.position is None:
        return None
    return Gated(
        positions=_on_device(torch.tensor([alignment.position])),
        of_tokens=_on_device(torch.from_numpy(alignment.text.astype(np.int64) - 1)),
        of_tiles=_on_device(torch.from_numpy(alignment.tiles.astype(np.int64) - 1)),
    )


def num_tokens_beside(encoded: EncodedBeside | None) -> int:
    """That the prompt's last token sees, and each one after it."""
    return 0 if encoded is None else len(encoded.tokens)


def check_tiles(
    config: RunConfig,
    thrift: Thrift,
    num_placeholders: int,
    num_tiles: int,
    beside: EncodedBeside | None = None,
    grids: Sequence[Grid] = (),
) -> None:
    """Raise `DataError` where a prompt's placeholders are not those of its tiles."""
    num_tiles -= 0 if beside is None else len(beside.tiles)
    visual = VisualLayout.from_config(config)
    num_of_tile = visual.num_tokens_per_tile
    if visual.stacks_tiles:
        num_tiles = visual.num_stacked_on(grids, num_tiles, "(a prompt)")
    num_kept = thrift.num_tokens_per_tile(num_of_tile)
    if num_placeholders != num_tiles * num_kept:
        of_all = "" if num_kept == num_of_tile else f" that are kept of {num_of_tile}"
        raise DataError(
            f"{num_placeholders} {config.model.image_token} in the prompt for {num_tiles} tiles x "
            f"{num_kept} tokens{of_all}"
        )
