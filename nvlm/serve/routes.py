"""The server's addresses."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from nvlm.printing import say
from nvlm.serve.api_errors import ApiError, failed
from nvlm.serve.chat_page import chat_page
from nvlm.serve.service import Service

# Nobody reads it; the number is nginx's.
_CLIENT_GONE = 499
_SECONDS_TO_TELL = 2.0


def build_app(service: Service) -> FastAPI:
    """Every error is answered in OpenAI's form, and no trace of one leaves the machine."""
    # FastAPI's own pages load scripts from elsewhere.
    html, policy = chat_page()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        with ExitStack() as stack:
            stack.enter_context(service.admitted())
            deadline = service.deadline()
            body = await service.read_body(request, deadline)
            preparing = service.in_worker(service.prepare, body)
            question = await service.within(deadline, request, preparing)
            del body
            if question.stream:
                events = service.streamed_answer(question, deadline)
                return _Events(events, stack.pop_all(), deadline)
            answering = service.whole_answer(question)
            return JSONResponse(await service.within(deadline, request, answering))

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service.check_model(name)
        return JSONResponse(_model(service))

    @app.post("/v1/nvlm/preview")
    async def image_preview(request: Request) -> Response:
        with service.admitted():
            deadline = service.deadline()
            body = await service.read_body(request, deadline)
            work = service.in_worker(service.preview, body)
            return JSONResponse(await service.within(deadline, request, work))

    @app.get("/")
    async def page() -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/health")
    async def health() -> Response:
        if service.is_ending:
            return JSONResponse({"status": "ending"}, 503)
        return JSONResponse({"status": "ok"})

    _answer_errors(app)
    return app


class _Events(StreamingResponse):
    """Server-sent events; their generator is closed and its place given back however it ends.

    Also where a client reads nothing of them, a little after the deadline, of which the last event
    would have told it.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], place: ExitStack, deadline: float):
        super().__init__(events, headers={"X-Accel-Buffering": "no"})
        self._events = events
        self._place = place
        self._latest = deadline + _SECONDS_TO_TELL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place, suppress(TimeoutError):
            async with aclosing(self._events), asyncio.timeout_at(self._latest):
                await super().__call__(scope, receive, send)


def _model(service: Service) -> dict[str, object]:
    """OpenAI's fields, and what a client of this server may ask at most."""
    limits = service.limits
    return {
        "id": service.model,
        "object": "model",
        "created": service.started,
        "owned_by": "nvlm",
        "limits": {
            "max_image_megapixels": limits.max_image_megapixels,
            "max_request_mb": limits.max_request_mb,
            "max_images": limits.max_images,
            "max_new_tokens": limits.max_new_tokens,
        },
    }


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> Response:
        return error_response(error)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        what = f"{request.method} {request.url.path[:200]}"
        message = f"unknown request: {what}" if error.status_code in (404, 405) else error.detail
        known = ApiError(error.status_code, message, code="unknown_url")
        known.headers.update(error.headers or {})
        return error_response(known)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        lines = "".join(traceback.format_exception(error))
        say(f"{lines}error: {request.method} {request.url.path}: a fault of nvlm", sys.stderr)
        return error_response(failed())


def error_response(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)
