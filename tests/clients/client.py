"""What a client is, where it runs, and what is found."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clients.exports import Exports

TIMEOUT_SECONDS = 1800


class ClientFailed(Exception):
    """A client's program ended with an error; the message is the end of what it printed."""


class NotHere(Exception):
    """What a client needs beyond the package index is not here; the message says what."""


@dataclass(frozen=True)
class Comparison:
    """One thing that a client was asked for."""

    what: str  # such as `chat, greedy`
    found: str  # such as `6 of 6 answers equal`
    is_equal: bool


@dataclass(frozen=True)
class Trial:
    """A client installed in an environment of its own, and what it is tried on."""

    python: Path
    exports: Exports
    folder: Path  # for its files; empty at first

    def run(self, command: Sequence[str | Path], **variables: str) -> str:
        """What `python COMMAND...` prints, run in `folder` with nothing of this repository's path.

        Raises:
            ClientFailed: it ended with an error.
        """
        done = subprocess.run(
            [self.python, *command],
            env=own_environment(self.python, self.folder) | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        (self.folder / "output.txt").write_text(f"{done.stdout}\n{done.stderr}")
        if done.returncode:
            raise ClientFailed(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}".strip())
        return done.stdout


@dataclass(frozen=True)
class Client:
    """
    Attributes:
        name: on the command line, and of its environment and results.
        requirements: what pip installs, at the newest release where none is named.
        distribution: whose version is reported, unless `version` says what it is.
        compare: runs the client and compares; `ClientFailed` counts as a difference.
        needs_nvlm: whether nvlm itself is installed beside it, with its entry points.
        without_dependencies: requirements of which nothing else is installed.
    """

    name: str
    requirements: tuple[str, ...]
    distribution: str
    compare: Callable[[Trial], list[Comparison]]
    needs_nvlm: bool = False
    without_dependencies: tuple[str, ...] = ()
    version: Callable[[], str] | None = None


def own_environment(python: Path, folder: Path) -> Mapping[str, str]:
    """Variables of a process that finds nothing but what is installed beside `python`."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(python.parents[1]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf_home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def equal_rows(what: str, ours: Mapping[str, object], theirs: Mapping[str, object]) -> Comparison:
    """Whether every row of `ours` is the one of that name in `theirs`, and which are not."""
    assert ours, what
    differing = [name for name, row in ours.items() if theirs.get(name) != row]
    found = f"{len(ours) - len(differing)} of {len(ours)} equal"
    if differing:
        found += f"; not: {', '.join(differing)}"
    return Comparison(what, found, not differing)
