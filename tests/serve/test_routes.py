"""What a route gives back however its answer ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import Any

import pytest

from nvlm.serve import routes


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
def test_a_client_that_reads_nothing_keeps_no_place(
    spec_version: str, monkeypatch: pytest.MonkeyPatch
):
    """Its connection takes no more bytes, and is not closed either."""
    ended: list[str] = []
    monkeypatch.setattr(routes, "_SECONDS_TO_TELL", 0.1)

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: {}\n\n"
        finally:
            ended.append("events")

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def respond() -> None:
        place = ExitStack()
        place.callback(ended.append, "place")
        now = asyncio.get_running_loop().time()
        response = routes._Events(events(), place, deadline=now)
        scope = {"type": "http", "asgi": {"spec_version": spec_version}}
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if len(sent) > 3:
                await never()

        await response(scope, never, send)

    asyncio.run(asyncio.wait_for(respond(), 20))
    assert ended == ["events", "place"]
