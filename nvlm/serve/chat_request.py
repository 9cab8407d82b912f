"""What a chat completion asks: its turns with marks for their images, and how to answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from nvlm.data.samples.sample import IMAGE_MARK, Messages, SampleError
from nvlm.data.samples.text_members import checked_text
from nvlm.generate.request import Sampling
from nvlm.serve.api_errors import bad_request
from nvlm.serve.chat_fields import ChatFields, Message, TextPart
from nvlm.serve.limits import Limits

# Such as by `"detail": "low"`: the image as one tile.
_TILES_OF_LOW_DETAIL = 1


@dataclass(frozen=True)
class ImageUrl:
    field: str  # where it stands in the body
    url: str


@dataclass(frozen=True)
class ChatRequest:
    model: str
    messages: Messages  # up to the user turn that is to be answered
    images: list[ImageUrl]  # in the order of their marks
    max_num_tiles: int | None  # of each image; None: the stage's
    max_new_tokens: int | None  # None: as many as the limits and the model's positions leave
    sampling: Sampling  # but for `max_new_tokens`
    stream: bool
    include_usage: bool  # in a stream, too


def read_request(fields: ChatFields, limits: Limits) -> ChatRequest:
    """What the fields ask together.

    Raises:
        ApiError: 400; turns are in no order that can be answered, a text cannot be used, or a
            limit is passed.
    """
    messages, images, details = _read_messages(fields.messages)
    if len(images) > limits.max_images:
        raise bad_request(
            f"{len(images)} images, over the server's --max-images {limits.max_images}", "messages"
        )
    if len(details) > 1:
        raise bad_request(
            "images of low detail beside others: give all images of a request the same detail",
            "messages",
        )
    options = fields.stream_options
    if options is not None and not fields.stream:
        raise bad_request("stream_options without stream: true", "stream_options")
    return ChatRequest(
        model=fields.model,
        messages=messages,
        images=images,
        max_num_tiles=next(iter(details), None),
        max_new_tokens=_max_new_tokens(fields, limits),
        sampling=_sampling(fields),
        stream=bool(fields.stream),
        include_usage=options is not None and bool(options.include_usage),
    )


def max_tiles_of(detail: str | None) -> int | None:
    """Most tiles of an image; None: the stage's."""
    return _TILES_OF_LOW_DETAIL if detail == "low" else None


def _sampling(fields: ChatFields) -> Sampling:
    """Greedy where nothing is said, as the generation settings of exports are."""
    temperature = fields.temperature or 0.0
    seed = fields.seed
    if seed is None:
        seed = secrets.randbits(63) if temperature > 0 else 0
    return Sampling(
        temperature=temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=max(0, fields.top_k or 0),
        seed=seed % 2**63,
        stop=tuple(fields.stop or ()),
    )


def _max_new_tokens(fields: ChatFields, limits: Limits) -> int | None:
    if fields.max_completion_tokens is not None and fields.max_tokens is not None:
        raise bad_request("max_tokens beside max_completion_tokens: give one", "max_tokens")
    name = "max_tokens" if fields.max_tokens is not None else "max_completion_tokens"
    wanted = fields.max_completion_tokens or fields.max_tokens
    if wanted is not None and wanted > limits.max_new_tokens:
        raise bad_request(
            f"{name} is {wanted:,}, over the server's --max-new-tokens {limits.max_new_tokens:,}",
            name,
        )
    return wanted


def _read_messages(given: list[Message]) -> tuple[Messages, list[ImageUrl], set[int | None]]:
    """(turns, images, their most tiles)."""
    messages: Messages = []
    images: list[ImageUrl] = []
    details: set[int | None] = set()
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        role = "system" if message.role == "developer" else message.role
        if role == "system" and number > 0:
            raise bad_request(f"{where} is a {message.role} message: it must be first", where)
        pieces = []
        for place, part in enumerate(message.content):
            field = f"{where}.content[{place}]"
            if isinstance(part, TextPart):
                if part.text:
                    pieces.append(_checked(part.text, role, field))
                continue
            if role != "user":
                raise bad_request(f"{field} is an image: only user messages may have one", field)
            pieces.append(IMAGE_MARK)
            images.append(ImageUrl(f"{field}.image_url.url", part.image_url.url))
            details.add(max_tiles_of(part.image_url.detail))
        # Images and texts in lines of their own, as training data has them.
        content = "\n".join(pieces)
        if role == "user" and not content.strip():
            raise bad_request(f"{where}.content is empty", f"{where}.content")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "user":
        raise bad_request("the last message must be a user's: it is what is answered", "messages")
    return messages, images, details


def _checked(text: str, role: str, field: str) -> str:
    try:
        # Answers and other parts may be blank; what is no text at all may not.
        checked_text(f"{text}.", field)
    except SampleError as error:
        raise bad_request(str(error), field) from None
    if IMAGE_MARK in text and role != "assistant":
        raise bad_request(
            f"{field} has the text {IMAGE_MARK}, which stands for images in prompts: send images "
            "as parts of type image_url, and write the text another way",
            field,
        )
    return text
