"""The token layout of a sample, all of it (reference for the exported model's prompt code too).

A conversation becomes ChatML (chat.py); each mark `<image>` of a user turn becomes

    <Image> {tag of tile 1} {placeholder x tokens per tile} {tag of tile 2} ... </Image>

Control tokens and placeholders are ids. The text between two of them is tokenised as one string,
with two exceptions: the content of an assistant turn starts a new string, because generation starts
there; and with `image_boundary: separate` the first tag of an image is a string of its own.

Shape suffix: t tokens of the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nvlm.batch import IGNORED_LABEL
from nvlm.config import RunConfig
from nvlm.data.chat import ChatTokenizer, load_chat_tokenizer, with_system_message
from nvlm.data.sample import IMAGE_MARK, Messages, count_image_marks
from nvlm.data.tile_tags import IMAGE_END, IMAGE_START, TileTags, tags_of_image
from nvlm.data.tiling import cut_tiles
from nvlm.errors import DataError

# Part of every index's hash. Raise it whenever the same sample would give other tokens.
LAYOUT_VERSION = 1


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
    """Token counts from which the length at any number of tiles follows (`encoded_length`)."""

    # Everything but placeholders, second and later tags, and `leads_*`.
    num_text_tokens: int
    # Per image, the text that ends with the image's first tag: its tokens depend on that tag.
    leads_single: list[int]  # the image is a single tile
    leads_multiple: list[int]


@dataclass(frozen=True)
class TagLengths:
    """Tokens of the tags that stand alone, between placeholders."""

    tiles: list[int]  # entry k-1: `<tile_k>`
    thumbnail: int

    def num_tokens_after_first(self, num_tiles: int, use_thumbnail: bool) -> int:
        """Tokens of all tags of an image but the first."""
        if num_tiles == 1:
            return 0
        if use_thumbnail:
            return sum(self.tiles[1 : num_tiles - 1]) + self.thumbnail
        return sum(self.tiles[1:num_tiles])


@dataclass(frozen=True)
class _Piece:
    """A string to tokenise, or ids as they are."""

    text: str = ""
    ids: tuple[int, ...] = ()
    trained: bool = False
    is_image: bool = False
    # The image that this text leads to, if it ends with (a part of) its first tag.
    lead_of: int | None = None


class SampleEncoder:
    """Turns conversations into tokens, labels and placeholder positions."""

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        num_tokens_per_tile: int,
        tile_tags: TileTags,
        use_thumbnail: bool,
        image_boundary: str,
        system_message: str | None,
    ):
        self.tokenizer = tokenizer
        self.num_tokens_per_tile = num_tokens_per_tile
        self.tile_tags: TileTags = tile_tags
        self.use_thumbnail = use_thumbnail
        self.image_boundary = image_boundary
        self.system_message = system_message

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
            num_tokens_per_tile=config.model.vision.num_tokens_per_tile,
            tile_tags=config.stage.tile_tags,
            use_thumbnail=config.stage.use_thumbnail,
            image_boundary=config.stage.image_boundary,
            system_message=config.stage.system_message,
        )

    def template_settings(self) -> dict[str, str | int | None]:
        """What decides text lengths; an index is valid for one value of it.

        The number of tiles and of tokens per tile are left out: an index holds image sizes.
        """
        return {
            "layout_version": LAYOUT_VERSION,
            "tokenizer": self.tokenizer.fingerprint,
            "stage.tile_tags": self.tile_tags,
            "stage.image_boundary": self.image_boundary,
            "stage.system_message": self.system_message,
        }

    def encode(self, messages: Messages, num_tiles: Sequence[int]) -> EncodedSample:
        """A training document. `num_tiles`: tiles of each image, thumbnails counted."""
        pieces = self._lay_out(messages, num_tiles)
        tokens, trained, image_mask = self._tokenize(pieces)
        labels = np.full_like(tokens, IGNORED_LABEL)
        labels[:-1] = np.where(trained[1:], tokens[1:], IGNORED_LABEL)
        return EncodedSample(tokens, labels, image_mask)

    def encode_prompt(
        self, messages: Messages, num_tiles: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(tokens [t], image_mask [t]) of all turns and the start of the assistant's answer."""
        pieces = self._lay_out(messages, num_tiles)
        pieces += self._turn_start("assistant")
        tokens, _, image_mask = self._tokenize(pieces)
        return tokens, image_mask

    def measure(self, conversations: Sequence[Messages]) -> list[TextLengths]:
        """Lengths of many conversations, tokenised in one batch."""
        texts: list[str] = []
        plans: list[tuple[list[_Piece], list[_Piece]]] = []
        for messages in conversations:
            num_images = count_image_marks(messages)
            single = self._lay_out(messages, [1] * num_images)
            # Without tags both are alike; with them any number above one has the same first tag.
            multiple = self._lay_out(messages, [3] * num_images)
            multiple = [piece for piece in multiple if piece.lead_of is not None]
            plans.append((single, multiple))
            texts += [piece.text for piece in single + multiple if not piece.ids]
        counts = iter(self.tokenizer.count(texts))

        measured = []
        for single, multiple in plans:
            num_images = 1 + max((p.lead_of for p in multiple if p.lead_of is not None), default=-1)
            lengths = TextLengths(0, [0] * num_images, [0] * num_images)
            num_text_tokens = 0
            for piece in single:
                length = len(piece.ids) or next(counts)
                if piece.lead_of is not None:
                    lengths.leads_single[piece.lead_of] += length
                elif not piece.is_image:
                    num_text_tokens += length
            for piece in multiple:
                assert piece.lead_of is not None
                lengths.leads_multiple[piece.lead_of] += next(counts)
            measured.append(
                TextLengths(num_text_tokens, lengths.leads_single, lengths.leads_multiple)
            )
        return measured

    def tag_lengths(self, max_num_tiles: int) -> TagLengths:
        """Tokens of the tags `<tile_1>` to `<tile_{max_num_tiles}>` and of the thumbnail's."""
        tags = tags_of_image(max_num_tiles + 1, self.tile_tags, use_thumbnail=True)
        *tiles, thumbnail = self.tokenizer.count(tags)
        return TagLengths(tiles, thumbnail)

    def _turn_start(self, role: str) -> list[_Piece]:
        return [_Piece(ids=(self.tokenizer.start_id,)), _Piece(text=f"{role}\n")]

    def _lay_out(self, messages: Messages, num_tiles: Sequence[int]) -> list[_Piece]:
        messages = with_system_message(messages, self.system_message)
        num_marks = count_image_marks(messages)
        if num_marks != len(num_tiles):
            raise DataError(f"{num_marks} {IMAGE_MARK} marks for {len(num_tiles)} images")
        pieces: list[_Piece] = []
        next_image = 0
        for message in messages:
            role, content = message["role"], message["content"]
            trained = role == "assistant"
            start, role_text = self._turn_start(role)
            pieces.append(start)
            if trained:
                pieces += [role_text, _Piece(text=content, trained=True)]
            elif role == "user":
                pieces += self._lay_out_user(role_text.text + content, num_tiles, next_image)
                next_image += content.count(IMAGE_MARK)
            else:
                pieces.append(_Piece(text=role_text.text + content))
            pieces.append(_Piece(ids=(self.tokenizer.end_id,), trained=trained))
            pieces.append(_Piece(text="\n", trained=trained))
        return pieces

    def _lay_out_user(self, text: str, num_tiles: Sequence[int], image: int) -> list[_Piece]:
        """A user turn from `user\\n` to the end of its content; its first image is `image`."""
        pieces: list[_Piece] = []
        before, *rest = text.split(IMAGE_MARK)
        for after in rest:
            first_tag, *later_tags = tags_of_image(
                num_tiles[image], self.tile_tags, self.use_thumbnail
            )
            if self.image_boundary == "merged":
                leads = [before + IMAGE_START + first_tag]
            else:
                leads = [before + IMAGE_START, first_tag]
            pieces += [_Piece(text=lead, lead_of=image) for lead in leads]
            tile = _Piece(ids=(self.tokenizer.image_id,) * self.num_tokens_per_tile, is_image=True)
            pieces.append(tile)
            for tag in later_tags:
                pieces += [_Piece(text=tag), tile]
            before = IMAGE_END + after
            image += 1
        return [*pieces, _Piece(text=before)]

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


def prepare_prompt(
    config: RunConfig,
    encoder: SampleEncoder,
    messages: Messages,
    images: Sequence[NDArray[np.uint8]],
) -> EncodedPrompt:
    """Tokens and tiles of a question, tiled as the run's training samples are.

    Images are resized exactly as Pillow does, and so as the exported model does.

    Args:
        images: each [height, width, 3] RGB.

    Raises:
        DataError: the user turns have more or fewer `<image>` marks than there are images.
    """
    stage, image_size = config.stage, config.model.vision.image_size
    cut = [cut_tiles(i, stage.max_num_tiles, stage.use_thumbnail, image_size) for i in images]
    tokens, image_mask = encoder.encode_prompt(messages, [len(tiles) for tiles in cut])
    none = np.zeros((0, 3, image_size, image_size), np.uint8)
    return EncodedPrompt(tokens, image_mask, np.concatenate([none, *cut]))
