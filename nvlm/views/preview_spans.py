"""A sample's tokens as text to look at: which characters they are, and which are trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nvlm.batch import IGNORED_LABEL
from nvlm.data.samples.conversations import ROLES
from nvlm.data.text.chat_format import split_controls
from nvlm.data.text.encode import EncodedSample, SampleEncoder

SpanKind = Literal["text", "control", "image"]


@dataclass(frozen=True)
class Span:
    """Tokens shown together: whole characters, a control token, or the placeholders of a tile."""

    kind: SpanKind
    text: str
    ids: list[int]
    start: int  # place of the first one in the sample, from 0
    trained: bool  # whether the model learns to say them
    starts_turn: bool = False


def split_tokens(encoded: EncodedSample, encoder: SampleEncoder, image_token: str) -> list[Span]:
    """The spans of a sample, in order; together they have every token once."""
    tokens, labels = encoded.tokens, encoded.labels
    # A label stands one place before the token that it asks for.
    trained = np.zeros(len(tokens), bool)
    trained[1:] = labels[:-1] != IGNORED_LABEL
    assert (labels[:-1] == tokens[1:])[trained[1:]].all()
    control = {token: text for text, token in encoder.tokenizer.control_ids.items()}
    visual = encoder.visual
    if visual.num_soft_tag_tokens or visual.num_alignment_levels:
        learned = {token for token in tokens.tolist() if token >= visual.first_soft_id}
        control |= {token: visual.learned_name(token) for token in learned}
    chat = encoder.tokenizer.format
    starts = {split_controls(chat, chat.around(role)[0] or " ")[0] for role in ROLES}
    kinds: list[SpanKind] = [
        "image" if is_image else "control" if token in control else "text"
        for token, is_image in zip(tokens.tolist(), encoded.image_mask.tolist(), strict=True)
    ]

    spans = []
    runs = itertools.groupby(range(len(tokens)), key=lambda i: (kinds[i], bool(trained[i])))
    for (kind, is_trained), run in runs:
        places = list(run)
        ids = tokens[places].tolist()
        if kind == "image":
            size = encoder.visual.num_tokens_per_tile
            pieces = [(image_token, size)] * (len(ids) // size)
        elif kind == "control":
            pieces = [(control[token], 1) for token in ids]
        else:
            pieces = list(_whole_characters(encoder.tokenizer.decode_each(ids)))
        done = 0
        for text, count in pieces:
            span_ids = ids[done : done + count]
            is_start = kind == "control" and text in starts
            spans.append(Span(kind, text, span_ids, places[done], is_trained, is_start))
            done += count
        assert done == len(ids)
    return spans


def _whole_characters(texts: list[str]) -> Iterator[tuple[str, int]]:
    """(text, number of its tokens), where a token alone may have a part of a character."""
    count = 0
    for text in texts:
        count += 1
        if text:
            yield text, count
            count = 0
    if count:
        yield "", count
