"""The token layout of a sample, all of it (reference for the exported model's prompt code too).

A conversation becomes ChatML (chat.py); each mark `<image>` of a user turn becomes

    <Image> {tag of tile 1} {placeholder x tokens per tile} {tag of tile 2} ... </Image>

Control tokens and placeholders are ids. The text between two of them is tokenised as one string,
with these exceptions: the content of an assistant turn starts a new string, because generation
starts there; with `image_boundary: block` an image stands on a line of its own (image_lines.py),
and its block, the newline after it, and the text before and after are strings of their own; with
`image_boundary: separate` the first tag of an image is a string of its own.

A document has no roles: its parts one after another and `<|im_end|>`. Each part is a string of its
own, and so is what surrounds its images, because of the two only the text is trained.

Shape suffix: t tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import IGNORED_LABEL
from nvlm.config import RunConfig
from nvlm.data.images.tiling import candidate_grids, choose_grid, cut_tiles
from nvlm.data.samples.conversations import count_image_marks
from nvlm.data.samples.kinds import Sample
from nvlm.data.samples.sample import IMAGE_MARK, Messages
from nvlm.data.text.chat import ChatTokenizer, load_chat_tokenizer, with_system_message
from nvlm.data.text.image_lines import texts_between_images
from nvlm.errors import DataError
from nvlm.sizes.visual import Grid, VisualLayout

IMAGE_START = "<Image>"
IMAGE_END = "</Image>"

# Part of every index's hash. Raise it whenever the same sample would give other tokens.
LAYOUT_VERSION = 2


@dataclass(frozen=True)
class EncodedSample:
    """One document, before packing."""

    tokens: NDArray[np.int64]  # [t]
    labels: NDArray[np.int64]  # [t]; the next token where it is trained, else IGNORED_LABEL
    image_mask: NDArray[np.bool_]  # [t]


@dataclass(frozen=True)
class EncodedPrompt:
    """What a model answers to: ends with `<|im_start|>assistant\\n`."""

    tokens: NDArray[np.int64]  # [t]
    image_mask: NDArray[np.bool_]  # [t]
    tiles: NDArray[np.uint8]  # [n, 3, image_size, image_size]


@dataclass(frozen=True)
class TextLengths:
    """Token counts from which a sample's length follows, however many tiles and turns it keeps."""

    # Per turn (of a document: part) everything but placeholders, second and later tags, `leads_*`.
    turn_tokens: list[int]
    turn_images: list[int]  # images of each turn
    turn_trained: list[int]  # tokens of each turn that the model learns to say
    # Per image, the text that ends with the image's first tag: its tokens depend on that tag.
    leads_single: list[int]  # the image is a single tile
    leads_multiple: list[int]
    # The first turn's tokens with each of the sample's variants; empty if it has none.
    variant_tokens: list[int] = field(default_factory=list)
    variant_trained: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Piece:
    """A string to tokenise, or ids as they are."""

    text: str = ""
    ids: tuple[int, ...] = ()
    turn: int = 0
    trained: bool = False
    is_image: bool = False
    # The image that this text leads to, if it ends with (a part of) its first tag.
    lead_of: int | None = None


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

    def template_settings(self) -> dict[str, str | int | None]:
        """What decides text lengths; an index is valid for one value of it.

        The number of tiles and of tokens per tile are left out: an index holds image sizes.
        """
        visual = self.visual
        return {
            "layout_version": LAYOUT_VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "stage.tile_tags": visual.tile_tags,
            "digits of a tile tag": visual.num_tag_digits if visual.tile_tags != "none" else None,
            "image size in tile tags": visual.image_size if visual.tile_tags == "2d_box" else None,
            "stage.image_boundary": self.image_boundary,
            "stage.system_message": self.system_message,
        }

    def encode(
        self,
        messages: Messages,
        grids: Sequence[Grid],
        untrained_turns: frozenset[int] = frozenset(),
    ) -> EncodedSample:
        """A training sample.

        Args:
            grids: (columns, rows) of each image's tiles.
            untrained_turns: turns whose answers are context only, from 0; see `kinds.Sample`.
        """
        pieces = self._lay_out(messages, grids, untrained_turns)
        tokens, trained, image_mask = self._tokenize(pieces)
        labels = np.full_like(tokens, IGNORED_LABEL)
        labels[:-1] = np.where(trained[1:], tokens[1:], IGNORED_LABEL)
        return EncodedSample(tokens, labels, image_mask)

    def encode_prompt(
        self, messages: Messages, grids: Sequence[Grid]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(tokens [t], image_mask [t]) of all turns and the start of the assistant's answer."""
        pieces = self._lay_out(messages, grids)
        pieces += self._turn_start("assistant", 0)
        tokens, _, image_mask = self._tokenize(pieces)
        return tokens, image_mask

    def measure(self, samples: Sequence[Sample]) -> list[TextLengths]:
        """Lengths of many samples, tokenised in one batch."""
        # The first tag is that of the thumbnail or, for any grid of several tiles, this.
        single_tag, multiple_tag = self.visual.tags((1, 1))[0], self.visual.tags((2, 1))[0]
        layouts: list[tuple[list[_Piece], list[str], list[tuple[str, str]]]] = []
        texts: dict[str, int] = {}
        for sample in samples:
            messages = sample.conversation(0)
            grids = [(1, 1)] * count_image_marks(messages)
            pieces = self._lay_out(messages, grids, sample.untrained_turns)
            leads = [piece.text for piece in pieces if piece.lead_of is not None]
            leads = [
                lead.removesuffix(single_tag) + multiple_tag if lead.endswith(single_tag) else lead
                for lead in leads
            ]
            variants = sample.variants if len(sample.variants) > 1 else []
            ends = [(self._end_of_question(question), answer) for question, answer in variants]
            layouts.append((pieces, leads, ends))
            texts.update((piece.text, 0) for piece in pieces)
            texts.update((lead, 0) for lead in leads)
            texts.update((text, 0) for ending in ends for text in ending)
        counts = dict(zip(texts, self.tokenizer.count(list(texts)), strict=True))

        measured = []
        for pieces, leads, ends in layouts:
            lengths = _add_up(pieces, leads, counts)
            if ends:
                chosen = [counts[question] + counts[answer] for question, answer in ends]
                rest = lengths.turn_tokens[0] - chosen[0]
                lengths.variant_tokens.extend(rest + tokens for tokens in chosen)
                answers = [counts[answer] for _, answer in ends]
                rest = lengths.turn_trained[0] - answers[0]
                lengths.variant_trained.extend(rest + tokens for tokens in answers)
            measured.append(lengths)
        return measured

    def tag_lengths(self, max_num_tiles: int) -> dict[Grid, int]:
        """Grid of at most `max_num_tiles` tiles -> tokens of all of an image's tags but the first.

        These tags stand alone, between placeholders. Counted once: every source's index asks.
        """
        if max_num_tiles not in self._tag_lengths:
            self._tag_lengths[max_num_tiles] = self._count_tags(max_num_tiles)
        return self._tag_lengths[max_num_tiles]

    def _count_tags(self, max_num_tiles: int) -> dict[Grid, int]:
        tags_of = {grid: self.visual.tags(grid)[1:] for grid in candidate_grids(max_num_tiles)}
        texts = sorted({tag for tags in tags_of.values() for tag in tags})
        counts = dict(zip(texts, self.tokenizer.count(texts), strict=True))
        return {grid: sum(counts[tag] for tag in tags) for grid, tags in tags_of.items()}

    def _turn_start(self, role: str, turn: int) -> list[_Piece]:
        return [
            _Piece(ids=(self.tokenizer.start_id,), turn=turn),
            _Piece(text=f"{role}\n", turn=turn),
        ]

    def _lay_out(
        self,
        messages: Messages,
        grids: Sequence[Grid],
        untrained_turns: frozenset[int] = frozenset(),
    ) -> list[_Piece]:
        num_marks = count_image_marks(messages)
        if num_marks != len(grids):
            raise DataError(f"{num_marks} {IMAGE_MARK} marks for {len(grids)} images")
        if messages and messages[0]["role"] == "document":
            return self._lay_out_document(messages, grids)
        pieces: list[_Piece] = []
        next_image = 0
        turn = 0
        for message in with_system_message(messages, self.system_message):
            role, content = message["role"], message["content"]
            is_answer = role == "assistant"
            trained = is_answer and turn not in untrained_turns
            start, role_text = self._turn_start(role, turn)
            pieces.append(start)
            if is_answer:
                pieces += [role_text, _Piece(text=content, turn=turn, trained=trained)]
            elif role == "user":
                pieces += self._lay_out_user(role_text, content, grids, next_image, turn)
                next_image += content.count(IMAGE_MARK)
            else:
                pieces.append(_Piece(text=role_text.text + content, turn=turn))
            pieces.append(_Piece(ids=(self.tokenizer.end_id,), turn=turn, trained=trained))
            pieces.append(_Piece(text="\n", turn=turn, trained=trained))
            turn += is_answer
        return pieces

    def _lay_out_user(
        self, role: _Piece, content: str, grids: Sequence[Grid], image: int, turn: int
    ) -> list[_Piece]:
        """A user turn from `user\\n` to the end of its content; its first image is `image`."""
        pieces: list[_Piece] = []
        if self.image_boundary == "block":
            before, *rest = texts_between_images(content)
            pieces.append(_Piece(text=role.text + before, turn=turn))
            for after in rest:
                pieces += self._lay_out_image("", grids[image], image, turn)
                pieces += [_Piece(text=text, turn=turn) for text in (IMAGE_END, "\n", after)]
                image += 1
            return pieces
        before, *rest = (role.text + content).split(IMAGE_MARK)
        for after in rest:
            pieces += self._lay_out_image(before, grids[image], image, turn)
            before = IMAGE_END + after
            image += 1
        return [*pieces, _Piece(text=before, turn=turn)]

    def _end_of_question(self, content: str) -> str:
        """The last string of a user turn, as `_lay_out_user` lays it out.

        All that differs between the prompts of a sample: images come before the question.
        """
        if self.image_boundary == "block" and IMAGE_MARK in content:
            return texts_between_images(content)[-1]
        _, mark, after = f"user\n{content}".rpartition(IMAGE_MARK)
        return IMAGE_END + after if mark else after

    def _lay_out_document(self, messages: Messages, grids: Sequence[Grid]) -> list[_Piece]:
        pieces: list[_Piece] = []
        image = 0
        for turn, message in enumerate(messages):
            text, *rest = message["content"].split(IMAGE_MARK)
            pieces.append(_Piece(text=text, turn=turn, trained=True))
            for text in rest:
                pieces += self._lay_out_image("", grids[image], image, turn)
                pieces.append(_Piece(text=IMAGE_END, turn=turn))
                pieces.append(_Piece(text=text, turn=turn, trained=True))
                image += 1
        # Counted with the first part: it is there however many parts are kept.
        return [*pieces, _Piece(ids=(self.tokenizer.end_id,), trained=True)]

    def _lay_out_image(self, before: str, grid: Grid, image: int, turn: int) -> list[_Piece]:
        """From the text `before` an image to its last placeholder."""
        first_tag, *later_tags = self.visual.tags(grid)
        if self.image_boundary == "separate":
            leads = [before + IMAGE_START, first_tag]
        else:
            leads = [before + IMAGE_START + first_tag]
        pieces = [_Piece(text=lead, turn=turn, lead_of=image) for lead in leads]
        ids = (self.tokenizer.image_id,) * self.visual.num_tokens(1)
        tile = _Piece(ids=ids, turn=turn, is_image=True)
        pieces.append(tile)
        for tag in later_tags:
            pieces += [_Piece(text=tag, turn=turn), tile]
        return pieces

    def _tokenize(
        self, pieces: list[_Piece]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """(tokens, trained, image_mask), each [t]."""
        ids: list[int] = []
        lengths: list[int] = []
        for piece in pieces:
            piece_ids = piece.ids or self.tokenizer.encode(piece.text)
            ids.extend(piece_ids)
            lengths.append(len(piece_ids))
        trained = np.repeat([piece.trained for piece in pieces], lengths)
        image_mask = np.repeat([piece.is_image for piece in pieces], lengths)
        return np.array(ids, dtype=np.int64), trained, image_mask


def _add_up(pieces: list[_Piece], leads: list[str], counts: dict[str, int]) -> TextLengths:
    """The lengths of a sample.

    Args:
        pieces: its layout with every image a single tile.
        leads: its texts that lead to images, in order, with every image several tiles.
    """
    num_turns = 1 + max(piece.turn for piece in pieces)
    num_images = sum(piece.is_image for piece in pieces)
    lengths = TextLengths(
        turn_tokens=[0] * num_turns,
        turn_images=[0] * num_turns,
        turn_trained=[0] * num_turns,
        leads_single=[0] * num_images,
        leads_multiple=[0] * num_images,
    )
    lead = iter(leads)
    for piece in pieces:
        if piece.is_image:
            lengths.turn_images[piece.turn] += 1
        elif piece.lead_of is not None:
            lengths.leads_single[piece.lead_of] += counts[piece.text]
            lengths.leads_multiple[piece.lead_of] += counts[next(lead)]
        else:
            tokens = len(piece.ids) or counts[piece.text]
            lengths.turn_tokens[piece.turn] += tokens
            lengths.turn_trained[piece.turn] += tokens * piece.trained
    if pieces[0].trained and counts[pieces[0].text]:
        lengths.turn_trained[0] -= 1  # nothing asks for a document's first token
    return lengths


def prepare_prompt(
    config: RunConfig,
    encoder: SampleEncoder,
    messages: Messages,
    images: Sequence[NDArray[np.uint8]],
    max_num_tiles: int | Sequence[int] | None = None,
) -> EncodedPrompt:
    """Tokens and tiles of a question, tiled as the run's training samples are.

    Images are resized exactly as Pillow does, and so as the exported model does.

    Args:
        images: each [height, width, 3] RGB.
        max_num_tiles: most tiles per image, or of each image. None: the stage's.

    Raises:
        DataError: the user turns have more or fewer `<image>` marks than there are images.
    """
    stage, image_size = config.stage, config.model.vision.image_size
    limits = max_num_tiles or stage.max_num_tiles
    limits = [limits] * len(images) if isinstance(limits, int) else limits
    pairs = list(zip(images, limits, strict=True))
    grids = [choose_grid(i.shape[1], i.shape[0], limit, image_size) for i, limit in pairs]
    cut = [cut_tiles(i, limit, stage.use_thumbnail, image_size) for i, limit in pairs]
    tokens, image_mask = encoder.encode_prompt(messages, grids)
    none = np.zeros((0, 3, image_size, image_size), np.uint8)
    return EncodedPrompt(tokens, image_mask, np.concatenate([none, *cut]))
