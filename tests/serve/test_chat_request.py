"""Fields to turns with marks, and to a way of answering."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from helpers.served import image_part, text_part, user

from nvlm.generate.request import Sampling
from nvlm.serve.api_errors import ApiError
from nvlm.serve.chat_fields import read_fields
from nvlm.serve.chat_request import ChatRequest, read_request
from nvlm.serve.limits import Limits

LIMITS = Limits(max_image_megapixels=1, max_images=3, max_new_tokens=100)


def read(*messages: dict[str, Any], **fields: Any) -> ChatRequest:
    value = {"model": "m", "messages": list(messages), **fields}
    return read_request(read_fields(json.dumps(value).encode()), LIMITS)


def contents(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in read(*messages).messages]


def answered(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_images_stand_where_they_are_sent():
    image, question = image_part("data:a"), text_part("What is this?")
    # As `nvlm generate` and training data put an image in front of a question.
    assert contents(user(image, question)) == [("user", "<image>\nWhat is this?")]
    assert contents(user(question, image)) == [("user", "What is this?\n<image>")]
    between = user(text_part("A"), image, text_part("B"), image)
    assert contents(between) == [("user", "A\n<image>\nB\n<image>")]
    assert contents(user(image, text_part(""))) == [("user", "<image>")]


def test_turns_keep_their_order_and_images():
    request = read(
        {"role": "developer", "content": "Be brief."},
        user(image_part("data:a"), text_part("What?")),
        answered("A <image> tag."),
        user(text_part("And"), image_part("data:b")),
    )
    roles = [message["role"] for message in request.messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert [image.url for image in request.images] == ["data:a", "data:b"]
    assert request.images[1].field == "messages[3].content[1].image_url.url"


def test_greedy_unless_asked():
    assert read(user("Hi")).sampling == Sampling()
    sampled = read(
        user("Hi"), temperature=0.7, top_p=0.9, top_k=-1, seed=-1, stop=["a", "b"]
    ).sampling
    expected = Sampling(temperature=0.7, top_p=0.9, seed=2**63 - 1, stop=("a", "b"))
    assert sampled == expected
    # Without a seed every answer is drawn anew.
    seeds = {read(user("Hi"), temperature=0.7).sampling.seed for _ in range(8)}
    assert len(seeds) == 8
    assert replace(read(user("Hi"), temperature=0).sampling, seed=0) == Sampling()


def test_low_detail_is_one_tile():
    low, high = image_part("data:a", detail="low"), image_part("data:b", detail="high")
    assert read(user(low, text_part("?"))).max_num_tiles == 1
    assert read(user(high, image_part("data:c"))).max_num_tiles is None
    with pytest.raises(ApiError, match="same detail"):
        read(user(low, high))


def test_lengths():
    assert read(user("Hi")).max_new_tokens is None
    assert read(user("Hi"), max_tokens=7).max_new_tokens == 7
    assert read(user("Hi"), max_completion_tokens=100).max_new_tokens == 100
    for name in ("max_tokens", "max_completion_tokens"):
        with pytest.raises(ApiError, match=f"{name} is 101, over .*--max-new-tokens 100"):
            read(user("Hi"), **{name: 101})
    with pytest.raises(ApiError, match="give one"):
        read(user("Hi"), max_tokens=1, max_completion_tokens=1)


@pytest.mark.parametrize(
    "messages, field, message",
    [
        ([user("")], "messages[0].content", "is empty"),
        ([user(" \n")], "messages[0].content", "is empty"),
        ([user("Hi"), answered("Ho")], "messages", "last message must be a user's"),
        ([{"role": "system", "content": "Hi"}], "messages", "last message"),
        ([user("Hi"), {"role": "system", "content": "x"}, user("Ho")], "messages[1]", "first"),
        ([user("a <image> b")], "messages[0].content[0]", "the text <image>"),
        ([user("a\0b")], "messages[0].content[0]", "NUL"),
        (
            [{"role": "system", "content": [image_part("data:a")]}, user("Hi")],
            "messages[0].content[0]",
            "only user messages",
        ),
        ([user(*[image_part("data:a")] * 4)], "messages", "4 images, over .*--max-images 3"),
    ],
)
def test_refused_turns(messages: list[dict[str, Any]], field: str, message: str):
    with pytest.raises(ApiError, match=message) as caught:
        read(*messages)
    assert (caught.value.status, caught.value.field) == (400, field)


def test_stream_options_are_of_streams():
    assert read(user("Hi"), stream=True, stream_options={"include_usage": True}).include_usage
    assert not read(user("Hi"), stream=True).include_usage
    with pytest.raises(ApiError, match="without stream"):
        read(user("Hi"), stream_options={"include_usage": True})
