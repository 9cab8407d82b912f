"""Errors as OpenAI's API has them: a status, and a body that names the field at fault."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request is refused or failed. The message goes to the client, so it holds nothing else's.

    Attributes:
        status: of HTTP.
        field: the body's field at fault, such as `messages[0].content`; OpenAI's `param`.
        code: a word for programs, such as `model_not_found`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        field: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field
        self.code = code
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        error = {"message": self.message, "type": kind, "param": self.field, "code": self.code}
        return {"error": error}


def bad_request(message: str, field: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, field, code)


def ending() -> ApiError:
    """The server takes no more questions, or has no more time for this one."""
    headers = {"Retry-After": "5"}
    return ApiError(503, "the server is ending", code="server_ending", headers=headers)


def failed() -> ApiError:
    """Something went wrong that is not the request's fault; the server's log has it."""
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def too_late(timeout_seconds: float) -> ApiError:
    return ApiError(
        504,
        f"no whole answer within {timeout_seconds:g} seconds (the server's --timeout-seconds)",
        code="timeout",
    )
