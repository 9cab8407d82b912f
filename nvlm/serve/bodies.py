"""Bodies of answers, as OpenAI's API has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

END_OF_STREAM = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Head:
    """What every piece of one answer says."""

    id: str
    created: int  # seconds since 1970
    model: str


def completion(
    head: Head, text: str, finish_reason: str, num_prompt_tokens: int, num_new_tokens: int
) -> dict[str, Any]:
    """A whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [choice],
        "usage": usage(num_prompt_tokens, num_new_tokens),
    }


def usage(num_prompt_tokens: int, num_new_tokens: int) -> dict[str, int]:
    """Tokens: of the prompt with its images' placeholders; of the answer with its end."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_new_tokens,
        "total_tokens": num_prompt_tokens + num_new_tokens,
    }


def chunk(head: Head, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "choices": [choice],
    }


def event(body: dict[str, Any]) -> bytes:
    """A body as a server-sent event; JSON's escapes leave no line end in it."""
    return f"data: {json.dumps(body)}\n\n".encode()
