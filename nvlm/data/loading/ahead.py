"""Fetching ahead of use."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import Future, wait
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The same items, each fetched by a thread while the one before it is used.

    The first is fetched by the thread that asks for it, which is the right one to start processes:
    the DataLoader's handler that notices their death has to be set by the main thread.

    What fetching an item raises is raised where that item is asked for. Closing this generator
    closes `items`, after the fetch that is under way. A fetch is not waited for where that handler
    raised meanwhile: of a process that was killed as it sent an item, the rest never comes.
    """
    fetched: Future[Item | None] | None = None
    try:
        item = next(items, None)
        while item is not None:
            fetched = _fetch(items)
            yield item
            item = fetched.result()
    except GeneratorExit:
        if fetched is not None:
            wait([fetched])
        raise
    finally:
        if fetched is None or fetched.done():
            items.close()


def _fetch(items: Generator[Item, None, None]) -> Future[Item | None]:
    fetched: Future[Item | None] = Future()

    def fetch() -> None:
        try:
            fetched.set_result(next(items, None))
        except BaseException as error:
            fetched.set_exception(error)

    # No thread of a pool: Python waits for those at its end.
    threading.Thread(target=fetch, name="one-ahead", daemon=True).start()
    return fetched
