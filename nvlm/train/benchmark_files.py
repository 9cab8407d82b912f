"""The benchmarks that a training asks its model: which, and their questions.

They are asked as `nvlm evaluate --suite` asks them. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nvlm.config import RunConfig
from nvlm.errors import ConfigError, DataError, NvlmError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.benchmarks.table import BENCHMARKS
from nvlm.evaluate.suite.files import list_files
from nvlm.evaluate.suite.items import read_items
from nvlm.evaluate.suite.settings import Asked, Settings
from nvlm.printing import listed


@dataclass(frozen=True)
class BenchmarkQuestions:
    """A benchmark, and the questions of it that are asked."""

    asked: Asked
    items: Sequence[Item]


def asked_benchmarks(config: RunConfig) -> list[Asked]:
    """What `validation.benchmarks` names, in its order; none where the run does not validate.

    Raises:
        ConfigError: there is no benchmark of that name.
    """
    wanted = config.validation
    if wanted.every is None:
        return []
    settings = Settings(limit=wanted.benchmark_questions)
    asked = []
    for name in dict.fromkeys(wanted.benchmarks or ()):
        if name not in BENCHMARKS:
            raise ConfigError(
                f"validation.benchmarks: no benchmark {name!r}; there are "
                f"{listed(sorted(BENCHMARKS), 99)}"
            )
        entry = BENCHMARKS[name]
        asked.append(Asked(entry, entry.splits[0], settings))
    return asked


def check_benchmarks(config: RunConfig) -> None:
    """Look for all that can be found missing without reading a question.

    Raises:
        NvlmError: a benchmark is not known, its folder is not there, or it cannot be scored here; a
            problem for each of which that is so.
    """
    asked = asked_benchmarks(config)
    problems = []
    for one in asked:
        folder = _data(config) / one.name
        try:
            if not one.is_scored:
                raise DataError(f"the truths of its split {one.split} are not published")
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; {_wanted(config, one)}")
            if one.benchmark.check is not None:
                one.benchmark.check()
        except NvlmError as error:
            problems.append(f"validation.benchmarks {one.name}: {error}")
    if problems:
        raise DataError(*problems)


def read_benchmarks(config: RunConfig) -> list[BenchmarkQuestions]:
    """The questions of all benchmarks; no picture is read.

    Raises:
        NvlmError: files are missing or damaged.
    """
    found = []
    for one in asked_benchmarks(config):
        try:
            found.append(BenchmarkQuestions(one, read_items(one, _data(config))))
        except DataError as error:
            raise DataError(
                f"validation.benchmarks {one.name}: {error}; {_wanted(config, one)}"
            ) from None
    return found


def _data(config: RunConfig) -> Path:
    folder = config.validation.benchmarks_dir
    assert folder is not None, "see nvlm/config/checks.py"
    return Path(folder)


def _wanted(config: RunConfig, asked: Asked) -> str:
    lines = list_files(asked.benchmark, _data(config)).split("\n  ")
    return f"expected {', '.join(lines)}"
