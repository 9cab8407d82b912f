"""What tests of pages with commands share: the page's blocks, and running them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers import spawn
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


def run_block(language: str, text: str, folder: Path, environment: dict[str, str]) -> str:
    """What a block of commands or of Python prints; commands of ours alone start warm."""
    if language == "bash":
        printed = spawn.run_commands(text, folder, environment)
        if printed is not None:
            return printed
    start = ["bash", "-euo", "pipefail"] if language == "bash" else [sys.executable]
    return run([*start, "-c", text], cwd=folder, env=environment)


def run(command: list[str], **settings) -> str:
    """What the command prints; fails the test with its output unless it ends well."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, **settings
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
