"""A headless Chromium for pages that are served here."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PROGRAM = next((path for name in _NAMES if (path := shutil.which(name))), None)
# Why tests of pages cannot run here; "" where they can.
MISSING = ""
if PROGRAM is None:
    MISSING = "no Chromium on this machine: apt-get install chromium"
elif find_spec("playwright") is None:
    MISSING = "the package playwright is not installed"
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@contextmanager
def browser(profile: Path, **settings: Any) -> Iterator[Any]:
    """playwright's context of a Chromium that was never used; `profile` is its empty folder."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=PROGRAM, args=_OPTIONS.split(), **settings
        )
        try:
            yield context
        finally:
            context.close()
