"""`nvlm serve`: the order in which a server starts, and how it ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from nvlm.config.schema import ParallelConfig
from nvlm.ending import SECONDS_TO_END, begin, leave
from nvlm.errors import ConfigError
from nvlm.launch import launched
from nvlm.printing import say
from nvlm.serve.address import take_address, url_of
from nvlm.serve.limits import Limits

# Of the time that any verb has to end, what is left for closing connections and the process.
_SECONDS_TO_CLOSE = 3.0
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
    """Serve until a signal ends it.

    Returns:
        the exit code: 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ConfigError: the address cannot be taken, see `take_address`; or as `Engine`.
        CheckpointError, DataError: as `Engine`.
    """
    if launched().world_size > 1:
        raise ConfigError("nvlm serve runs as one process: start it without torchrun")
    with take_address(options.host, options.port, options.api_key is not None) as listener:
        # Import torch: what is wrong with the arguments is said before.
        from nvlm.generate.engine import Engine
        from nvlm.generate.session import Session
        from nvlm.serve.answer_loop import AnswerLoop
        from nvlm.serve.gate import Gate
        from nvlm.serve.routes import build_app
        from nvlm.serve.service import Service
        from nvlm.serve.web_server import WebServer

        with Engine(checkpoint, _layout(options)) as engine:
            most = options.max_image_megapixels or engine.config.data.max_image_megapixels
            limits = replace(options.limits, max_image_megapixels=most)
            engine.load()
            loop = AnswerLoop(Session(engine))
            service = Service(engine, loop, engine.config.run.name, limits)
            server = WebServer(Gate(build_app(service), options.api_key, options.host), listener)
            with _ending_on_signals(service, loop) as heard:
                server.start()
                _announce(service, engine.checkpoint, engine.config.parallel, url_of(listener))
                loop.run()
                server.stop()
    number = heard[0]
    interrupted = number == signal.SIGINT
    say("interrupted" if interrupted else f"stopped by {number.name}", sys.stderr)
    return 128 + number


def _layout(options: Options) -> ParallelConfig | None:
    if options.tensor is None and options.pipeline is None:
        return None
    return ParallelConfig(tensor=options.tensor or 1, pipeline=options.pipeline or 1)


@contextmanager
def _ending_on_signals(service, loop) -> Iterator[list[signal.Signals]]:
    """The first signal lets open answers end, a second one ends the process; gives the first one.

    `nvlm.parallel.signals` hears them as well, in a thread, and ends the process after
    `SECONDS_TO_END` whatever hangs.
    """
    heard: list[signal.Signals] = []

    def hear(number: int, _: FrameType | None) -> None:
        begin()
        if heard:
            leave(128 + number)
        heard.append(signal.Signals(number))
        service.is_ending = True
        seconds = SECONDS_TO_END - _SECONDS_TO_CLOSE
        loop.end(seconds)
        say(
            f"{heard[0].name}: no more questions are taken; {loop.num_open} being answered have "
            f"{seconds:g} seconds; a second signal ends at once",
            sys.stderr,
        )

    before = {number: signal.signal(number, hear) for number in _TAKEN}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(service, checkpoint: Path, layout: ParallelConfig, url: str) -> None:
    limits = service.limits
    num = layout.tensor * layout.pipeline
    say(f"model    {service.model}: {checkpoint}")
    say(f"layout   tensor {layout.tensor} x pipeline {layout.pipeline}: "
        f"{num} process{'es' if num > 1 else ''}")  # fmt: skip
    say(f"limits   {limits.max_queue} requests at once, each of {limits.max_request_mb:g} MB, "
        f"{limits.max_images} images, {limits.max_image_megapixels:g} megapixels, "
        f"{limits.max_new_tokens:,} new tokens, {limits.timeout_seconds:g} seconds")  # fmt: skip
    say(f"address  {url}/v1 (OpenAI's API)")
    sys.stdout.flush()
