"""What tests of pages with commands share: the page's blocks, and running them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.paths import REPOSITORY


def blocks_of(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL)


def prepare(folder: Path) -> dict[str, str]:
    """Put what pages name into `folder`, where they then write; returns the environment."""
    for name in ("assets", "configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "100",
    }


def run(command: list[str], **settings) -> str:
    """What the command prints; fails the test with its output unless it ends well."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **settings
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
