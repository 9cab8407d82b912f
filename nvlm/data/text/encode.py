"""A sample's tokens, labels and placeholder positions, and how many tokens it will have.

layout.py says what stands where.

Shape suffix: t tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import IGNORED_LABEL
from nvlm.config import RunConfig
from nvlm.data.images.tiling import candidate_grids
from nvlm.data.samples.conversations import count_image_marks
from nvlm.data.samples.kinds import Sample
from nvlm.data.samples.sample import IMAGE_MARK, Messages
from nvlm.data.text.alignment import EncodedAlignment, encode_alignment
from nvlm.data.text.beside import EncodedBeside, encode_beside
from nvlm.data.text.chat import ChatTokenizer, load_chat_tokenizer
from nvlm.data.text.chat_format import CHATML
from nvlm.data.text.layout import SampleLayout
from nvlm.data.text.pieces import Key, Piece, TextLengths, add_up, in_order
from nvlm.errors import DataError
from nvlm.hashes import hash_json
from nvlm.sizes.visual import Grid, VisualLayout

# Part of every index's hash. Raise it whenever the same sample would give other tokens.
LAYOUT_VERSION = 2


@dataclass(frozen=True)
class EncodedSample:
    """One document, before packing."""

    tokens: NDArray[np.int64]  # [t]
    labels: NDArray[np.int64]  # [t]; the next token where it is trained, else IGNORED_LABEL
    image_mask: NDArray[np.bool_]  # [t]
    beside: EncodedBeside | None = None  # None where `model.fusion` is decoder_only
    alignment: EncodedAlignment | None = None  # None where no gate reads it
    grids: tuple[Grid, ...] = ()  # of its images; only with `model.deepstack: tiles`


@dataclass(frozen=True)
class EncodedPrompt:
    """What a model answers to: ends where the answer begins."""

    tokens: NDArray[np.int64]  # [t]
    image_mask: NDArray[np.bool_]  # [t]
    tiles: NDArray[np.uint8]  # [n, 3, image_size, image_size]
    beside: EncodedBeside | None = None
    alignment: EncodedAlignment | None = None
    grids: tuple[Grid, ...] = ()  # as of `EncodedSample`


class SampleEncoder:
    """Turns conversations and documents into tokens, labels and placeholder positions."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        visual: VisualLayout,
        image_boundary: str,
        system_message: str | None,
    ):
        self.tokenizer = tokenizer
        self.visual = visual
        self.image_boundary = image_boundary
        self.system_message = system_message
        self._tag_lengths: dict[int, dict[Grid, int]] = {}

    @property
    def _layout(self) -> SampleLayout:
        """Of what `visual` is now: an engine that keeps a share of each tile changes it."""
        return SampleLayout(self.tokenizer, self.visual, self.image_boundary, self.system_message)

    @classmethod
    def from_config(
        cls, config: RunConfig, tokenizer: ChatTokenizer | None = None
    ) -> SampleEncoder:
        """The encoder of a run.

        Raises:
            DataError: no tokenizer, or one with more tokens than the model has rows.
        """
        if tokenizer is None:
            tokenizer = load_chat_tokenizer(config.model.tokenizer, config.model.image_token)
        if tokenizer.vocab_size > config.model.language.vocab_size:
            raise DataError(
                f"model.tokenizer {config.model.tokenizer} has {tokenizer.vocab_size} tokens, more "
                f"than model.language.vocab_size {config.model.language.vocab_size}"
            )
        return cls(
            tokenizer,
            visual=VisualLayout.from_config(config),
            image_boundary=config.stage.image_boundary,
            system_message=config.stage.system_message,
        )

    def check_room(self, sequence_length: int) -> None:
        """Raise `DataError` unless an image of most tiles fits, with a word of question and answer.

        Configurations are checked before, with the tokens that Qwen2's tokenizer makes. A system
        message may take the room of tiles.
        """
        turns = [("user", f"{IMAGE_MARK}\nWhat"), ("assistant", "This")]
        messages = [{"role": role, "content": content} for role, content in turns]
        visual, boundary = self.visual, self.image_boundary
        bare = SampleEncoder(
            self.tokenizer, visual=visual, image_boundary=boundary, system_message=None
        )
        (lengths,) = bare.measure([Sample("", "", messages)])
        tags = self.tag_lengths(visual.max_num_tiles)
        of_image = max(n + visual.num_tokens(visual.num_tiles(grid), 1) for grid, n in tags.items())
        least = sum(lengths.turn_tokens) + lengths.leads_multiple[0] + of_image
        if least > sequence_length:
            raise DataError(
                f"stage.sequence_length {sequence_length} is too short for one image of "
                f"{visual.max_tiles_per_image} tiles and its prompt with this tokenizer: at least "
                f"{least} tokens, or fewer stage.max_num_tiles"
            )

    def template_settings(self) -> dict[str, str | int | None]:
        """What decides text lengths; an index is valid for one value of it.

        The number of tiles and of tokens per tile are left out: an index holds image sizes.
        """
        visual = self.visual
        chat = self.tokenizer.format
        return {
            "layout_version": LAYOUT_VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "stage.tile_tags": visual.tile_tags,
            "digits of a tile tag": visual.num_tag_digits if visual.has_text_tags else None,
            "image size in tile tags": visual.image_size if visual.tile_tags == "2d_box" else None,
            "stage.image_boundary": self.image_boundary,
            "stage.system_message": self.system_message,
            # Earlier indexes are of this format and this fusion, and say nothing of them.
            **({} if chat == CHATML else {"chat format": hash_json(asdict(chat))}),
            **({} if visual.fusion == "decoder_only" else {"model.fusion": visual.fusion}),
            **({"tokens of a soft tag": n} if (n := visual.num_soft_tag_tokens) else {}),
            **({"levels of alignment": self._levels_said} if visual.num_alignment_levels else {}),
            **({"stage.tiling": visual.tiling} if visual.tiling == "pad_skip" else {}),
            **({"model.deepstack": "tiles"} if visual.stacks_tiles else {}),
        }

    @property
    def _levels_said(self) -> int | str:
        """How many levels samples have to bring; what brings none is left out."""
        visual = self.visual
        return "gate" if visual.mixes_levels else visual.num_alignment_levels

    def encode(
        self,
        messages: Messages,
        grids: Sequence[Grid],
        untrained_turns: frozenset[int] = frozenset(),
        alignment_level: int | None = None,
    ) -> EncodedSample:
        """A training sample.

        Args:
            grids: (columns, rows) of each image's tiles.
            untrained_turns, alignment_level: see `kinds.Sample`; turns count from 0.
        """
        pieces = self._layout.lay_out(messages, grids, untrained_turns, alignment_level)
        return self._tokenize(pieces, grids)

    def encode_prompt(
        self, messages: Messages, grids: Sequence[Grid]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(tokens [t], image_mask [t]) of all turns and the start of the assistant's answer."""
        encoded = self.encode_question(messages, grids)
        return encoded.tokens, encoded.image_mask

    def encode_prompt_beside(
        self, messages: Messages, grids: Sequence[Grid]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], EncodedBeside | None]:
        """`encode_prompt`, and what the decoder reads beside those tokens."""
        encoded = self.encode_question(messages, grids)
        return encoded.tokens, encoded.image_mask, encoded.beside

    def encode_question(self, messages: Messages, grids: Sequence[Grid]) -> EncodedSample:
        """All turns and the start of the assistant's answer, as they are read; with its vector of
        alignment, where samples bring levels, that of the highest."""
        pieces = self._layout.lay_out(messages, grids)
        pieces += self._layout.fixed(self.tokenizer.format.around("assistant")[0])
        return self._tokenize(pieces, grids)

    def measure(self, samples: Sequence[Sample]) -> list[TextLengths]:
        """Lengths of many samples, tokenised in one batch."""
        # The first tag is that of the thumbnail or, for any grid of several tiles, this.
        single_tag, multiple_tag = (self.visual.tags_inside(g)[0] for g in ((1, 1), (2, 1)))
        layouts: list[tuple[list[Piece], list[Key], list[tuple[Key, Key]]]] = []
        counts: dict[Key, int] = {}
        for sample in samples:
            messages = sample.conversation(0)
            grids = [(1, 1)] * count_image_marks(messages)
            pieces = in_order(self._layout.lay_out(messages, grids, sample.untrained_turns))
            leads = [piece.key for piece in pieces if piece.lead_of is not None]
            leads = [
                (lead.removesuffix(single_tag) + multiple_tag, goes_on)
                if lead.endswith(single_tag)
                else (lead, goes_on)
                for lead, goes_on in leads
            ]
            variants = sample.variants if len(sample.variants) > 1 else []
            ends = self._layout.ends(variants, pieces) if variants else []
            layouts.append((pieces, leads, ends))
            counts.update((piece.key, 0) for piece in pieces)
            counts.update((lead, 0) for lead in leads)
            counts.update((key, 0) for ending in ends for key in ending)
        self._count(counts)

        measured = []
        for pieces, leads, ends in layouts:
            lengths = add_up(pieces, leads, counts)
            if ends:
                chosen = [counts[question] + counts[answer] for question, answer in ends]
                rest = lengths.turn_tokens[0] - chosen[0]
                lengths.variant_tokens.extend(rest + tokens for tokens in chosen)
                answers = [counts[answer] for _, answer in ends]
                rest = lengths.turn_trained[0] - answers[0]
                lengths.variant_trained.extend(rest + tokens for tokens in answers)
            measured.append(lengths)
        return measured

    def _count(self, counts: dict[Key, int]) -> None:
        """Set each text's number of tokens."""
        for goes_on in (False, True):
            keys = [key for key in counts if key[1] == goes_on]
            found = self.tokenizer.count([text for text, _ in keys], goes_on)
            counts.update(zip(keys, found, strict=True))

    def tag_lengths(self, max_num_tiles: int) -> dict[Grid, int]:
        """Grid of at most `max_num_tiles` tiles -> tokens of all of an image's tags but the first.

        These tags stand alone. Counted once: every source's index asks.
        """
        if max_num_tiles not in self._tag_lengths:
            self._tag_lengths[max_num_tiles] = self._count_tags(max_num_tiles)
        return self._tag_lengths[max_num_tiles]

    def _count_tags(self, max_num_tiles: int) -> dict[Grid, int]:
        visual = self.visual
        grids = [g for g in candidate_grids(max_num_tiles) if visual.may_be(g, max_num_tiles)]
        tags_of = {grid: visual.tags_inside(grid)[1:] for grid in grids}
        texts = sorted({tag for tags in tags_of.values() for tag in tags})
        goes_on = visual.fusion == "cross_attention"  # no placeholders stand between tags
        counts = dict(zip(texts, self.tokenizer.count(texts, goes_on), strict=True))
        return {
            grid: sum(counts[tag] for tag in tags) + sum(map(len, visual.soft_tags(grid)[1:]))
            for grid, tags in tags_of.items()
        }

    def _tokenize(self, pieces: list[Piece], grids: Sequence[Grid]) -> EncodedSample:
        ids: list[int] = []
        lengths: list[int] = []
        for piece in in_order(pieces):
            piece_ids = piece.ids or self.tokenizer.encode(piece.text, piece.goes_on)
            ids.extend(piece_ids)
            lengths.append(len(piece_ids))
        trained = np.repeat([piece.trained for piece in pieces], lengths)
        image_mask = np.repeat([piece.is_image for piece in pieces], lengths)
        marks = [(piece.tile, piece.ends_image) for piece in pieces]
        beside = encode_beside(self.visual, self.tokenizer, grids, lengths, marks)
        alignment = encode_alignment(self.visual, grids, pieces, lengths)
        tokens = np.array(ids, dtype=np.int64)
        labels = np.full_like(tokens, IGNORED_LABEL)
        labels[:-1] = np.where(trained[1:], tokens[1:], IGNORED_LABEL)
        stacked = self.visual.stacked(grids)
        return EncodedSample(tokens, labels, image_mask, beside, alignment, stacked)
