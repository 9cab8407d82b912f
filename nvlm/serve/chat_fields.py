"""The fields of a chat completion's body: their types, and those that are refused by name.

A field that would change the answer and is not computed here is refused, unless its value asks for
what happens anyway (`"n": 1`). So is a name that OpenAI's API does not have: it may be a slip.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import from_json

from nvlm.serve.api_errors import ApiError, bad_request

# Field -> values that ask for nothing more than this server does; null never does.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
}
# Of a message.
_UNSUPPORTED_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "name": (),
    "tool_calls": ([],),
    "function_call": (),
    "audio": (),
    "refusal": (),
    "annotations": ([],),
}
# They do not change the answer: whose it is, what is stored or cached, what is paid.
_HARMLESS = {
    "user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls",
}  # fmt: skip


class Fields(BaseModel):
    """Of a body, or a part of one: what JSON says is taken as it is, and unknown names are not."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Fields):
    type: Literal["text"]
    text: str


class ImageUrl(Fields):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Fields):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(Fields):
    role: Literal["system", "developer", "user", "assistant"]
    content: list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]

    @field_validator("content", mode="before")
    @classmethod
    def _in_parts(cls, value: Any) -> Any:
        return [{"type": "text", "text": value}] if isinstance(value, str) else value


class StreamOptions(Fields):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against listeners; there is none


class ChatFields(Fields):
    """A body whose every field is of its type."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def read_fields(body: bytes) -> ChatFields:
    """The fields of a request's body.

    Raises:
        ApiError: 400; the body is not JSON, or the first field that is refused, with its name.
    """
    value = read_object(body)
    for name in value.keys() & _HARMLESS:
        del value[name]
    _refuse_unsupported(value, _UNSUPPORTED, "")
    messages = value.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else []):
        if isinstance(message, dict):
            _refuse_unsupported(message, _UNSUPPORTED_IN_MESSAGES, f"messages[{number}].")
    try:
        return ChatFields.model_validate(value)
    except ValidationError as error:
        raise refusal(error) from None


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        ApiError: 400; it is none.
    """
    try:
        value = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object", code="invalid_json")
    return value


def _refuse_unsupported(
    value: dict[str, Any], unsupported: dict[str, tuple[Any, ...]], prefix: str
) -> None:
    """Take out what asks for nothing; raise `ApiError` for what asks for something."""
    for name in [name for name in value if name in unsupported]:
        given = value.pop(name)
        if given is None or any(_is_same(given, neutral) for neutral in unsupported[name]):
            continue
        shown = repr(given)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise bad_request(
            f"{prefix}{name} is {shown}, which this server does not support: leave it out",
            f"{prefix}{name}",
            "unsupported_parameter",
        )


def _is_same(given: Any, neutral: Any) -> bool:
    return given == neutral and isinstance(given, bool) == isinstance(neutral, bool)


def refusal(error: ValidationError) -> ApiError:
    """Of the first field that is wrong."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = _name(first["loc"])
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown field {field}", field, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"{field} is missing", field, "missing_required_parameter")
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "list_type" and field.endswith(("content", "stop")):
        message = "expected text or a list"
    return bad_request(f"{field}: {message}", field, "invalid_value")


def _name(place: tuple[int | str, ...]) -> str:
    """As in `messages[0].content[1].image_url.url`."""
    name = ""
    for position, step in enumerate(place):
        # Pydantic says which kind of part it took: behind the number of a part.
        if position >= 2 and place[position - 2] == "content":
            continue
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return name
