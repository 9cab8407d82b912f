"""The pieces that a sample is tokenised in, and its length as they add up to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# A text, and whether it goes on from other text: what decides its tokens.
Key = tuple[str, bool]


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
class Piece:
    """A string to tokenise, or ids as they are."""

    text: str = ""
    ids: tuple[int, ...] = ()
    turn: int = 0
    trained: bool = False
    is_image: bool = False
    # Whether other text stands right before it.
    goes_on: bool = False
    # Whether a sample's variants have other texts here: the end of a question, and its answer.
    varies: bool = False
    # Whether it is said: an answer, trained or not, or a document's text.
    is_said: bool = False
    # Whether it is the vector of `stage.alignment`.
    is_alignment: bool = False
    # The image that this text leads to, if it ends with (a part of) its first tag.
    lead_of: int | None = None
    # See `beside.Mark`.
    tile: int | None = None
    ends_image: bool = False

    @property
    def key(self) -> Key:
        return self.text, self.goes_on


def in_order(pieces: list[Piece]) -> list[Piece]:
    """The pieces, those that go on from other text marked."""
    after_text = False
    marked = []
    for piece in pieces:
        if after_text and not piece.ids:
            piece = replace(piece, goes_on=True)
        marked.append(piece)
        after_text = bool(piece.text) or (after_text and not piece.ids)
    return marked


def add_up(pieces: list[Piece], leads: list[Key], counts: Mapping[Key, int]) -> TextLengths:
    """The lengths of a sample.

    Args:
        pieces: its layout with every image a single tile.
        leads: its texts that lead to images, in order, with every image several tiles.
        counts: the number of tokens of each text.
    """
    num_turns = 1 + max(piece.turn for piece in pieces)
    # Images follow one another, and some leads are of two strings.
    turn_of = {piece.lead_of: piece.turn for piece in pieces if piece.lead_of is not None}
    num_images = len(turn_of)
    lengths = TextLengths(
        turn_tokens=[0] * num_turns,
        turn_images=[0] * num_turns,
        turn_trained=[0] * num_turns,
        leads_single=[0] * num_images,
        leads_multiple=[0] * num_images,
    )
    for turn in turn_of.values():
        lengths.turn_images[turn] += 1
    lead = iter(leads)
    for piece in pieces:
        if piece.is_image:
            continue
        if piece.lead_of is not None:
            lengths.leads_single[piece.lead_of] += counts[piece.key]
            lengths.leads_multiple[piece.lead_of] += counts[next(lead)]
        else:
            tokens = len(piece.ids) or counts[piece.key]
            lengths.turn_tokens[piece.turn] += tokens
            lengths.turn_trained[piece.turn] += tokens * piece.trained
    if pieces[0].trained and counts[pieces[0].key]:
        lengths.turn_trained[0] -= 1  # nothing asks for a document's first token
    return lengths
