"""Fetching ahead of use."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Generator[Item, None, None]) -> Generator[Item, None, None]:
    """The same items, each fetched by a thread while the one before it is used.

    What fetching an item raises is raised where that item is asked for. Closing this generator
    closes `items`, after the fetch that is under way.
    """
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="one-ahead") as thread:
            fetched = thread.submit(next, items, None)
            while (item := fetched.result()) is not None:
                fetched = thread.submit(next, items, None)
                yield item
    finally:
        items.close()
