"""Layouts that processes go through, those of `slow` tests in a job of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from helpers import spawn


class Layouts(NamedTuple):
    """Layouts of one job, by name, and which of them checkpoint, each for the next one."""

    overrides: Mapping[str, list[str]]
    checkpointing: list[str]


def short_and_long(short: Iterable[str], long: Iterable[str]) -> list:
    """Names for `parametrize`; the long ones' tests are `slow`."""
    return [*short, *(pytest.param(name, marks=pytest.mark.slow) for name in long)]


def reader(
    script: str, num_processes: int, folder: Path, *jobs: Layouts
) -> Callable[[str], list[dict]]:
    """A function of a layout's name that gives each rank's results.

    The first call for a layout of a job runs it: `script` as `layout_steps` is one, in `folder`.
    """

    @cache
    def run(number: int) -> None:
        arguments = (folder, json.dumps(jobs[number].overrides))
        log = folder / f"log{number}"
        checkpointing = json.dumps(jobs[number].checkpointing)
        spawn.run_program_or_fail(num_processes, script, *arguments, checkpointing, log=log)

    @cache
    def read(layout: str) -> list[dict]:
        run(next(n for n, layouts in enumerate(jobs) if layout in layouts.overrides))
        return [
            torch.load(folder / f"{layout} rank{rank}.pt", weights_only=False)
            for rank in range(num_processes)
        ]

    return read


def by_layout(
    script: str, num_processes: int, folder: Path, layouts: Mapping[str, list[str]], *further: str
) -> dict[str, list[dict]]:
    """Layout -> each rank's results, of one job: `script` in `folder`, with further arguments."""
    program = (script, folder, json.dumps(layouts), *further)
    spawn.run_program_or_fail(num_processes, *program, log=folder / "log")
    return {
        layout: [
            torch.load(folder / f"{layout} rank{rank}.pt", weights_only=False)
            for rank in range(num_processes)
        ]
        for layout in layouts
    }
