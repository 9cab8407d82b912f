"""Who may ask, and what browsers may do with what they get.

A server without a key listens on this machine only, and yet any page that is open in a browser
here can send requests to it. Those of other sites' pages are refused: by `Origin`, which browsers
tell, and by `Host`, where a site's own name was made to point here (DNS rebinding).
"""

from __future__ import annotations

import hmac
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvlm.serve.api_errors import ApiError
from nvlm.serve.routes import error_response

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
_BEARER = "bearer "


class Gate:
    """The application behind it gets requests of those only who may ask.

    Args:
        key: what clients have to say, below /v1. None: nothing, and see above.
        host: the name or address that is listened on.
    """

    def __init__(self, app: ASGIApp, key: str | None, host: str):
        self._app = app
        self._key = key
        self._hosts = {*_LOCAL_NAMES, host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is not None:
            await error_response(refusal)(scope, receive, send_with_headers)
            return
        # What was not foreseen is answered and said in routes.py, then raised again.
        with suppress(Exception):
            await self._app(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if self._key is None:
            return self._refusal_of_strangers(headers)
        if not path.startswith("/v1/"):
            return None
        given = headers.get("authorization", "")
        if given[: len(_BEARER)].lower() != _BEARER:
            message = "no API key: send it as `Authorization: Bearer KEY`"
        elif hmac.compare_digest(given[len(_BEARER) :].strip().encode(), self._key.encode()):
            return None
        else:
            message = "wrong API key"
        return ApiError(401, message, None, "invalid_api_key", {"WWW-Authenticate": "Bearer"})

    def _refusal_of_strangers(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if _host_name(f"//{host}") not in self._hosts:
            return ApiError(
                403,
                f"asked for as {host[:200]!r}: a server without --api-key answers to "
                f"{', '.join(_LOCAL_NAMES)} only",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return ApiError(
                403,
                f"asked by a page of {origin[:200]!r}: without --api-key only this server's own "
                "page may ask",
                code="wrong_origin",
            )
        return None


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as of half an IPv6 address
        return None
