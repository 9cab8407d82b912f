"""uvicorn in a thread of its own: the main thread is the model's."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from nvlm.printing import say

_SECONDS_TO_CLOSE = 2


class WebServer:
    """Listens from `start` on, until `stop`.

    Args:
        listener: bound; closed by `stop`.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket):
        _say_errors()
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_SECONDS_TO_CLOSE,
        )
        self._server = uvicorn.Server(config)
        arguments = {"sockets": [listener]}
        self._thread = threading.Thread(
            target=self._server.run, kwargs=arguments, name="web server", daemon=True
        )

    def start(self) -> None:
        """Returns when clients can connect."""
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the web server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        """Close connections: at once where nothing is being sent, and soon in any case."""
        self._server.should_exit = True
        self._thread.join(_SECONDS_TO_CLOSE + 0.5)


class _Say(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record), sys.stderr)


def _say_errors() -> None:
    """Its warnings are of requests that are none of HTTP: their senders are told, nobody else."""
    logger = logging.getLogger("uvicorn.error")
    logger.handlers = [_Say(logging.ERROR)]
    logger.propagate = False
