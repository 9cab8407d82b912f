"""Requests to answers, on the server's event loop: limits, time, cancelling, and what is prepared.

Bodies are read and prompts prepared (JSON, base64, images, tokens) in a few worker threads, so that
neither the event loop nor the loop of answers waits for them.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from nvlm.errors import DataError
from nvlm.generate.request import Progress, Sampling
from nvlm.serve import bodies
from nvlm.serve.answer_loop import AnswerLoop
from nvlm.serve.api_errors import ApiError, bad_request, ending, too_late
from nvlm.serve.chat_fields import read_fields
from nvlm.serve.chat_request import read_request
from nvlm.serve.image_preview import preview
from nvlm.serve.limits import Limits
from nvlm.serve.pictures import read_pictures

if TYPE_CHECKING:
    from nvlm.data.text.encode import EncodedPrompt
    from nvlm.generate.engine import Engine

T = TypeVar("T")
# No token of Qwen2's tokenizers stands for more: a longer text need not be tokenised to be refused.
_MOST_BYTES_PER_TOKEN = 256
_MAX_WORKERS = 4


@dataclass(frozen=True)
class Question:
    """A request that is ready to be answered."""

    prompt: EncodedPrompt
    sampling: Sampling
    head: bodies.Head
    stream: bool
    include_usage: bool


class Service:
    """What the server's routes call; all on one event loop.

    Attributes:
        is_ending: new requests are refused from now on.
    """

    def __init__(self, engine: Engine, loop: AnswerLoop, model: str, limits: Limits):
        self.model = model
        self.limits = limits
        self.started = int(time.time())
        self.is_ending = False
        self._engine = engine
        self._loop = loop
        self._num_admitted = 0
        num_workers = min(_MAX_WORKERS, os.cpu_count() or 1)
        self._workers = ThreadPoolExecutor(num_workers, thread_name_prefix="prepare")

    # ----------------------------------------------------------------------------- every request

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests that are served at once: memory and waiting have a bound.

        Raises:
            ApiError: 503; the server is ending. 429; all places are taken.
        """
        if self.is_ending:
            raise ending()
        if self._num_admitted >= self.limits.max_queue:
            raise ApiError(
                429,
                f"{self._num_admitted} requests are being served, as many as the server's "
                "--max-queue allows: try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        self._num_admitted += 1
        try:
            yield
        finally:
            self._num_admitted -= 1

    def deadline(self) -> float:
        """When a request that comes now is given up, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.limits.timeout_seconds

    async def within(self, deadline: float, request: Request, work: Awaitable[T]) -> T:
        """What `work` gives; it is cancelled at the deadline, and when the client has gone.

        Raises:
            ApiError: 504; it is too late.
            ClientDisconnect: nobody waits for it any more.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnection(request))
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientDisconnect()
            return await task
        except TimeoutError:
            raise too_late(self.limits.timeout_seconds) from None
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def read_body(self, request: Request, deadline: float) -> bytes:
        """
        Raises:
            ApiError: 415; it does not say that it is JSON. 413; it is too long. 408; it did not
                come in time.
            ClientDisconnect: it was not sent to its end.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Browsers ask nobody before they send other types to another site's server.
            raise ApiError(415, "the body must have the type application/json")
        most = self.limits.max_request_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise self._too_long()
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise self._too_long()
        except TimeoutError:
            raise ApiError(408, "the body did not come in time", code="timeout") from None
        return bytes(body)

    def _too_long(self) -> ApiError:
        return ApiError(
            413,
            f"the body is over the server's --max-request-mb {self.limits.max_request_mb:g}",
            code="request_too_large",
            headers={"Connection": "close"},
        )

    async def in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, function, *arguments)

    # ---------------------------------------------------------------------------- chat completions

    def prepare(self, body: bytes) -> Question:
        """All that can be wrong with a question is found here; runs in a worker thread.

        Raises:
            ApiError: 404; there is no such model. 400; see `read_fields`, `read_request`,
                `read_pictures`; or prompt and answer have more tokens than the model has positions.
        """
        request = read_request(read_fields(body), self.limits)
        self.check_model(request.model)
        num_positions = self._engine.config.model.language.max_position_embeddings
        num_bytes = sum(len(message["content"].encode()) for message in request.messages)
        if num_bytes > num_positions * _MOST_BYTES_PER_TOKEN:
            raise _too_many_tokens(
                f"{num_bytes:,} bytes of text are more than {num_positions:,} tokens, all that the "
                "model has positions for"
            )
        try:
            prompt = self._engine.prepare(
                request.messages,
                read_pictures(request.images, self.limits),
                request.max_new_tokens or 1,
                request.max_num_tiles,
            )
        except DataError as error:
            raise _too_many_tokens(str(error)) from None
        most = min(self.limits.max_new_tokens, num_positions - len(prompt.tokens))
        return Question(
            prompt=prompt,
            sampling=replace(request.sampling, max_new_tokens=request.max_new_tokens or most),
            head=bodies.Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), self.model),
            stream=request.stream,
            include_usage=request.include_usage,
        )

    def preview(self, body: bytes) -> dict[str, Any]:
        """See `image_preview.preview`."""
        return preview(body, self._engine, self.limits)

    def check_model(self, name: str) -> None:
        """Raise `ApiError` 404 unless `name` is the model's."""
        if name != self.model:
            raise ApiError(
                404,
                f"the model {name[:200]!r} does not exist; there is {self.model!r}",
                "model",
                "model_not_found",
            )

    async def whole_answer(self, question: Question) -> dict[str, Any]:
        """
        Raises:
            ApiError: 503, 500; the answer has no end.
        """
        text, num_tokens, finish_reason = "", 0, ""
        with self._asked(question) as delivered:
            async for piece in self._progress(delivered):
                text += piece.text
                num_tokens += len(piece.token_ids)
                finish_reason = piece.finish_reason or finish_reason
        num_prompt_tokens = len(question.prompt.tokens)
        return bodies.completion(question.head, text, finish_reason, num_prompt_tokens, num_tokens)

    async def streamed_answer(
        self, question: Question, deadline: float
    ) -> AsyncGenerator[bytes, None]:
        """Server-sent events; an error after the first one is an event, too."""
        head = question.head
        extra: dict[str, Any] = {"usage": None} if question.include_usage else {}
        num_tokens = 0
        # Asked before anything is sent: an answer that a client has seen begin is one of those
        # that a server which ends still gives.
        with self._asked(question) as delivered:
            yield bodies.event(bodies.chunk(head, {"role": "assistant", "content": ""}) | extra)
            try:
                async for piece in self._progress(delivered, deadline):
                    num_tokens += len(piece.token_ids)
                    if piece.text:
                        yield bodies.event(bodies.chunk(head, {"content": piece.text}) | extra)
                    if piece.finish_reason is not None:
                        yield bodies.event(bodies.chunk(head, {}, piece.finish_reason) | extra)
            except ApiError as error:
                yield bodies.event(error.body)
                return
        if question.include_usage:
            used = bodies.usage(len(question.prompt.tokens), num_tokens)
            yield bodies.event(bodies.chunk(head, {}) | {"choices": [], "usage": used})
        yield bodies.END_OF_STREAM

    @contextmanager
    def _asked(self, question: Question) -> Iterator[asyncio.Queue[Progress | ApiError]]:
        """What the loop of answers delivers; leaving before the end cancels the question."""
        here = asyncio.get_running_loop()
        delivered: asyncio.Queue[Progress | ApiError] = asyncio.Queue()

        def deliver(item: Progress | ApiError) -> None:
            here.call_soon_threadsafe(delivered.put_nowait, item)

        key = question.head.id
        self._loop.ask(key, question.prompt, question.sampling, deliver)
        try:
            yield delivered
        finally:
            self._loop.cancel(key)

    async def _progress(
        self, delivered: asyncio.Queue[Progress | ApiError], deadline: float | None = None
    ) -> AsyncGenerator[Progress, None]:
        """Until the answer's end.

        Raises:
            ApiError: 504; it is too late. 503, 500; the answer has no end.
        """
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    item = await delivered.get()
            except TimeoutError:
                raise too_late(self.limits.timeout_seconds) from None
            if isinstance(item, ApiError):
                raise item
            yield item
            if item.finish_reason is not None:
                return


def _too_many_tokens(message: str) -> ApiError:
    return bad_request(message, "messages", "context_length_exceeded")


async def _disconnection(request: Request) -> None:
    """Returns when the client has gone; to be awaited once the body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
