"""What tests wrote down, for the pages that `parity_table` and `fault_table` make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest(
    page: Path, *arguments: str, capture: bool = False, environment: dict[str, str] | None = None
) -> str:
    """Runs pytest in the repository; returns what it printed where `capture` says so.

    Raises SystemExit, with `page` as what it leaves alone, if pytest does not pass.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=REPOSITORY,
        env={"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"{done.stdout or ''}pytest ended with {done.returncode}: {page} is left as it was"
        )
    return done.stdout or ""


def notes(page: Path, mark: str, variable: str, arguments: list[str]) -> list[dict]:
    """What tests marked `mark` wrote into the folder that `variable` names.

    With `--from DIR` as `arguments` nothing is run: it is read from there.
    """
    if arguments[:1] == ["--from"]:
        return _read(arguments[1])
    with tempfile.TemporaryDirectory() as folder:
        pytest(page, "-m", mark, *arguments, environment={variable: folder})
        return _read(folder)


def names_of_tests(page: Path, mark: str) -> set[str]:
    """The tests marked `mark` that there are, by the names that their rows have."""
    # -o addopts: options of the project could leave tests out, or print more than names.
    printed = pytest(page, "--collect-only", "-m", mark, "-o", "addopts=", capture=True)
    return {line for line in printed.splitlines() if line.startswith("tests/") and "::" in line}


def _read(folder: str | Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
