"""Bodies of chat completions: what is read, and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nvlm.serve.api_errors import ApiError
from nvlm.serve.chat_fields import TextPart, read_fields

PLAIN = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def refusal(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read_fields(body)
    assert caught.value.status == 400
    return caught.value


def body(**changes: Any) -> bytes:
    return json.dumps(PLAIN | changes).encode()


def with_message(**changes: Any) -> bytes:
    return body(messages=[PLAIN["messages"][0] | changes])


def test_text_and_parts_are_one_form():
    one = read_fields(body()).messages[0]
    parts = [{"type": "text", "text": "Hi"}]
    assert one == read_fields(with_message(content=parts)).messages[0]
    assert one.content == [TextPart(type="text", text="Hi")]


def test_what_asks_for_nothing_is_accepted():
    """As clients send it that spell out every default, or hand an earlier answer back whole."""
    fields = read_fields(
        body(
            n=1, logprobs=False, tools=[], tool_choice="auto", response_format={"type": "text"},
            presence_penalty=0, frequency_penalty=0.0, logit_bias=None, user="me", store=True,
            metadata={"a": "b"}, top_k=-1, temperature=1, stop="x", stream=None,
            messages=[
                PLAIN["messages"][0],
                {"role": "assistant", "content": "", "refusal": None, "tool_calls": None,
                 "annotations": [], "audio": None, "function_call": None},
                PLAIN["messages"][0],
            ],
        )
    )  # fmt: skip
    assert (fields.stop, fields.temperature, fields.top_k) == (["x"], 1.0, -1)


@pytest.mark.parametrize(
    "name, value",
    [
        ("n", 2),
        ("n", True),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -1),
        ("logit_bias", {"5": 100}),
        ("modalities", ["text", "audio"]),
        ("reasoning_effort", "high"),
        ("min_p", 0.1),
    ],
)
def test_what_would_change_the_answer_is_refused(name: str, value: Any):
    error = refusal(body(**{name: value}))
    assert (error.field, error.code) == (name, "unsupported_parameter")
    assert f"{name} is " in error.message


@pytest.mark.parametrize(
    "changes, field, message",
    [
        ({"temprature": 0}, "temprature", "unknown field temprature"),
        ({"model": None}, "model", "valid string"),
        ({"model": 7}, "model", "valid string"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "Hi"}, "messages", "valid list"),
        ({"messages": ["Hi"]}, "messages[0]", "dictionary"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_tokens": True}, "max_tokens", "valid integer"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ["a", ""]}, "stop[1]", "at least 1 character"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"stop": 5}, "stop", "expected text or a list"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "unknown field"),
    ],
)
def test_wrong_fields_are_named(changes: dict[str, Any], field: str, message: str):
    error = refusal(body(**changes))
    assert error.field == field
    assert message in error.message and field in error.message
    assert "\n" not in error.message and "pydantic" not in error.message


@pytest.mark.parametrize(
    "changes, field, message",
    [
        ({"role": "tool"}, "messages[0].role", "'assistant'"),
        ({"name": "Bob"}, "messages[0].name", "does not support"),
        ({"tool_calls": [{}]}, "messages[0].tool_calls", "does not support"),
        ({"colour": 1}, "messages[0].colour", "unknown field"),
        ({"content": None}, "messages[0].content", "expected text or a list"),
        ({"content": ["Hi"]}, "messages[0].content[0]", ""),
        ({"content": [{"type": "video_url"}]}, "messages[0].content[0]", "'text', 'image_url'"),
        ({"content": [{"text": "Hi"}]}, "messages[0].content[0]", "type"),
        ({"content": [{"type": "text"}]}, "messages[0].content[0].text", "is missing"),
        (
            {"content": [{"type": "image_url", "image_url": "data:"}]},
            "messages[0].content[0].image_url",
            "",
        ),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}]},
            "messages[0].content[0].image_url.detail",
            "'auto', 'low' or 'high'",
        ),
    ],
)
def test_wrong_messages_are_named(changes: dict[str, Any], field: str, message: str):
    error = refusal(with_message(**changes))
    assert error.field == field and message in error.message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b'{"model": NaN}',
        b'{"seed": ' + b"9" * 100_000 + b"}",
        b'{"model": "\\ud800"}',
        b"\0",
    ],
)
def test_what_is_no_json_object(content: bytes):
    error = refusal(content)
    assert "\n" not in error.message and len(error.message) < 300
