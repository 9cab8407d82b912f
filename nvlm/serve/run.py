"""`nvlm serve`: the order in which a server starts, and how it ends."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from nvlm.checkpoint_io import is_checkpoint
from nvlm.config.schema import ParallelConfig
from nvlm.ending import SECONDS_TO_END, begin, leave
from nvlm.errors import ConfigError
from nvlm.hub import is_hub_id
from nvlm.launch import is_under_torchrun, launched
from nvlm.printing import say
from nvlm.serve.address import take_address, url_of
from nvlm.serve.limits import Limits

if TYPE_CHECKING:
    from nvlm.generate.engine import Engine
    from nvlm.generate.session import Session
    from nvlm.serve.service import Service

# Of the time that any verb has to end, what is left for closing connections and the process.
_SECONDS_TO_CLOSE = 3.0
# A terminal signals torchrun and its processes, and torchrun its processes again.
_SECONDS_OF_ONE_SIGNAL = 3.0
_TAKEN = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Options:
    host: str
    port: int
    api_key: str | None
    max_image_megapixels: float | None  # None: the checkpoint's `data.max_image_megapixels`
    limits: Limits  # with any `max_image_megapixels`
    tensor: int | None
    pipeline: int | None


def serve(checkpoint: Path, options: Options) -> int:
    """Serve until a signal ends it; every process of a launch calls this, and the first one serves.

    Returns:
        the exit code: 130 after Ctrl-C, 143 after SIGTERM; 0 for a process whose first one ended.

    Raises:
        ConfigError: the address cannot be taken, see `take_address`; there are more processes than
            one model takes; or as `Engine`.
        CheckpointError, DataError: as `Engine`.
    """
    with ExitStack() as stack:
        listener = None
        if launched().rank == 0:
            taken = take_address(options.host, options.port, options.api_key is not None)
            listener = stack.enter_context(taken)
        # What is not installed is said before torch is imported and a model is read.
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401

        from nvlm.generate.engine import Engine
        from nvlm.generate.session import Session

        engine = stack.enter_context(Engine(checkpoint, _layout(options)))
        _check_one_replica(engine.config.parallel)
        engine.load()
        session = stack.enter_context(Session(engine))
        heard: list[signal.Signals] = []
        if listener is None:
            with _on_signals(heard, lambda: None):
                session.follow()
        else:
            name = _name_of(engine, checkpoint)
            _lead(engine, session, name, options, listener, heard)
    return _exit_code(heard)


def _lead(
    engine: Engine,
    session: Session,
    model: str,
    options: Options,
    listener: socket.socket,
    heard: list[signal.Signals],
) -> None:
    """Answer requests until a signal is heard, and those that are open then."""
    from nvlm.serve.answer_loop import AnswerLoop
    from nvlm.serve.gate import Gate
    from nvlm.serve.routes import build_app
    from nvlm.serve.service import Service
    from nvlm.serve.web_server import WebServer

    most = options.max_image_megapixels or engine.config.data.max_image_megapixels
    limits = replace(options.limits, max_image_megapixels=most)
    loop = AnswerLoop(session)
    service = Service(engine, loop, model, limits)
    server = WebServer(Gate(build_app(service), options.api_key, options.host), listener)

    def end() -> None:
        service.is_ending = True
        seconds = SECONDS_TO_END - _SECONDS_TO_CLOSE
        loop.end(seconds)
        say(
            f"{heard[0].name}: no more questions are taken; {loop.num_open} being answered have "
            f"{seconds:g} seconds; a second signal ends at once",
            sys.stderr,
        )

    with _on_signals(heard, end):
        server.start()
        try:
            _announce(service, engine, url_of(listener))
            loop.run()
        finally:
            service.is_ending = True
            server.stop()


def _check_one_replica(layout: ParallelConfig) -> None:
    wanted, there = layout.tensor * layout.pipeline, launched().world_size
    if wanted != there:
        raise ConfigError(
            f"{there} processes for a model of tensor {layout.tensor} x pipeline "
            f"{layout.pipeline}: start {wanted}, or say another --tensor and --pipeline; several "
            "servers of one model are started one by one, at ports of their own"
        )


def _exit_code(heard: list[signal.Signals]) -> int:
    if not heard:
        return 0
    if launched().rank == 0:
        what = "interrupted" if heard[0] == signal.SIGINT else f"stopped by {heard[0].name}"
        say(what, sys.stderr)
    return 128 + heard[0]


def _name_of(engine: Engine, given: Path) -> str:
    """What clients call the model: the run's name; of an export, its folder's or its id's."""
    if is_checkpoint(engine.checkpoint):
        return engine.config.run.name
    return str(given).partition("@")[0] if is_hub_id(given) else engine.checkpoint.name


def _layout(options: Options) -> ParallelConfig | None:
    if options.tensor is None and options.pipeline is None:
        return None
    return ParallelConfig(tensor=options.tensor or 1, pipeline=options.pipeline or 1)


@contextmanager
def _on_signals(heard: list[signal.Signals], end: Callable[[], None]) -> Iterator[None]:
    """The first signal is noted in `heard` and calls `end`; a second one ends the process.

    `nvlm.parallel.signals` hears them as well, in a thread, and ends the process after
    `SECONDS_TO_END` whatever hangs.
    """

    first = 0.0

    def hear(number: int, _: FrameType | None) -> None:
        nonlocal first
        begin()
        if heard and is_under_torchrun() and time.monotonic() - first < _SECONDS_OF_ONE_SIGNAL:
            return
        if heard:
            leave(128 + number)
        first = time.monotonic()
        heard.append(signal.Signals(number))
        end()

    before = {number: signal.signal(number, hear) for number in _TAKEN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(service: Service, engine: Engine, url: str) -> None:
    limits, layout = service.limits, engine.config.parallel
    num = layout.tensor * layout.pipeline
    processes = f"{num} process{'es' if num > 1 else ''}"
    say(f"model    {service.model}: {engine.checkpoint}")
    say(f"layout   tensor {layout.tensor} x pipeline {layout.pipeline}: {processes}")
    say(
        f"limits   {limits.max_queue} requests at once, each of {limits.max_request_mb:g} MB, "
        f"{limits.max_images} images, {limits.max_image_megapixels:g} megapixels, "
        f"{limits.max_new_tokens:,} new tokens, {limits.timeout_seconds:g} seconds"
    )
    say(f"address  {url}/v1 (OpenAI's API), {url}/ (a page to chat)")
    sys.stdout.flush()
