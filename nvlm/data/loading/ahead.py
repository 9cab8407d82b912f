"""Fetching ahead of use."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The same items, each fetched by a thread while the one before it is used.

    The first is fetched by the thread that asks for it, which is the right one to start processes:
    the DataLoader's handler that notices their death has to be set by the main thread.

    What fetching an item raises is raised where that item is asked for. Closing this generator
    closes `items`, after the fetch that is under way.
    """
    try:
        item = next(items, None)
        with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
            while item is not None:
                fetched = thread.submit(next, items, None)
                yield item
                item = fetched.result()
    finally:
        items.close()
