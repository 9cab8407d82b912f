"""`nvlm evaluate CHECKPOINT --suite`: benchmarks put to a checkpoint, alone or under torchrun.

Every model replica (data-parallel rank) answers its share of the questions. Everything that can be
refused without the model is refused before it is loaded, for all benchmarks together.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nvlm.batch import too_many_skipped
from nvlm.checkpoint_files import content_hash
from nvlm.errors import DataError, NvlmError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.suite.answering import answer_items, check_same_questions
from nvlm.evaluate.suite.files import describe_files, lacks_files, list_files
from nvlm.evaluate.suite.folder import begin, check_folder_of, finish, read_rows
from nvlm.evaluate.suite.items import Shots, read_items
from nvlm.evaluate.suite.scores import score_folder, write_summary
from nvlm.evaluate.suite.settings import Asked
from nvlm.evaluate.suite.table import print_scores
from nvlm.generate.engine import Engine
from nvlm.generate.engine_layout import layout_asked_for
from nvlm.generate.thrift import Thrift
from nvlm.parallel.agreement import from_main_rank, meet
from nvlm.parallel.groups import is_main_process
from nvlm.places import check_folder
from nvlm.printing import counted, say

_LOCK = ".lock"


@dataclass(frozen=True)
class Prepared:
    """A benchmark whose files were read."""

    asked: Asked
    items: list[Item]
    shots: Shots


def evaluate_suite(
    checkpoint: Path,
    asked: Sequence[Asked],
    data: Path,
    out: Path,
    tensor: int | None = None,
    pipeline: int | None = None,
    skip_missing: bool = False,
    write_page: Callable[[Path], Path] | None = None,
    thrift: Thrift | None = None,
) -> None:
    """Answer the benchmarks' questions and write a folder for each below `out`.

    The same again goes on where it was ended, whatever the number of processes.

    Args:
        checkpoint: a checkpoint or run folder.
        data: has a folder of files for each benchmark.
        tensor, pipeline: layout of a replica; the processes left over answer other questions. Both
            None: the whole model in every process or, where it does not fit their devices, see
            `default_layout`.
        skip_missing: leave out benchmarks whose files are not there, instead of ending.
        write_page: writes a page on the scores in a folder, and returns its path; called by the
            first process.
        thrift: see `Engine`; one of the settings that are noted beside the answers.

    Raises:
        NvlmError: files are missing or damaged, `out` has answers of something else, no checkpoint,
            or, when all is answered, more questions were skipped than `data.max_skipped_share` of
            the checkpoint's configuration allows.
    """
    layout = layout_asked_for(tensor, pipeline)
    with Engine(checkpoint, layout, wants_replicas=True, thrift=thrift) as engine:
        prepared = _prepare(asked, data, skip_missing)
        with ExitStack() as owned:
            done: list[list[str]] = from_main_rank(
                lambda: _open(engine, prepared, data, out, owned)
            )
            if any(len(keys) < len(one.items) for keys, one in zip(done, prepared, strict=True)):
                engine.load()
            summaries = [
                _answer(engine, one, set(keys), out / one.asked.name)
                for keys, one in zip(done, prepared, strict=True)
            ]
            from_main_rank(lambda: _finish(out, summaries, write_page))
        _check_skipped(engine, summaries)


def _prepare(asked: Sequence[Asked], data: Path, skip_missing: bool) -> list[Prepared]:
    """Read the questions of each benchmark; no picture is read.

    Raises:
        NvlmError: files are missing or damaged, or what a scorer needs is missing; a problem for
            each benchmark of which that is so.
    """
    prepared, problems = [], []
    for one in asked:
        try:
            if one.benchmark.check is not None:
                one.benchmark.check()
            prepared.append(Prepared(one, read_items(one, data), Shots(one, data)))
        except NvlmError as error:
            if skip_missing and lacks_files(one.benchmark, data):
                if is_main_process():
                    say(f"skipped: {one.name}: {error}", sys.stderr)
                continue
            problems.append(f"{one.name}: {error}\n  {list_files(one.benchmark, data)}")
    if problems:
        raise DataError(*problems)
    if not prepared:
        raise DataError(f"--data {data}: has the files of none of the benchmarks")
    return prepared


def _open(
    engine: Engine, prepared: Sequence[Prepared], data: Path, out: Path, owned: ExitStack
) -> list[list[str]]:
    """Make each benchmark's folder, or see that its answers may go on; the keys that are there.

    `out` is this process's until `owned` ends.

    Raises:
        NvlmError: `out` cannot be written, is another evaluation's, or has answers of another
            checkpoint, of other settings or data.
    """
    check_folder(out, "--out")
    abouts = [_about(engine, one.asked, data) for one in prepared]
    for one, about in zip(prepared, abouts, strict=True):
        check_folder_of(out / one.asked.name, about)
    out.mkdir(parents=True, exist_ok=True)
    try:
        owned.enter_context(FileLock(out / _LOCK, timeout=0))
    except Timeout:
        raise DataError(
            f"--out {out}: another evaluation is writing there; wait for its end"
        ) from None
    done = []
    for one, about in zip(prepared, abouts, strict=True):
        folder = out / one.asked.name
        begin(folder, about)
        rows = read_rows(folder)
        check_same_questions(one.asked, one.items, one.shots, rows, folder)
        if rows:
            say(f"{one.asked.name}: {len(rows):,} of {len(one.items):,} are answered already")
        done.append(list(rows))
    return done


def _about(engine: Engine, asked: Asked, data: Path) -> dict[str, Any]:
    """What is asked, and of whom: `settings.json`."""
    return {
        "benchmark": asked.name,
        "checkpoint": str(engine.checkpoint),
        "checkpoint_hash": content_hash(engine.checkpoint),
        "settings": {**asked.as_fields(), **engine.thrift.as_fields()},
        "data": describe_files(asked.benchmark, data),
        "data_folder": str(data.absolute()),
        "nvlm": version("nvlm"),
    }


def _answer(engine: Engine, one: Prepared, done: set[str], folder: Path) -> dict[str, Any]:
    """Answer what is not done, and score all; the summary, on every process."""
    name = one.asked.name
    todo = [item for item in one.items if item.key not in done]
    if todo:
        if is_main_process():
            say(f"{name}: asking {counted(len(todo), 'question')} of {one.asked.split}")
        answer_items(engine, one.asked, todo, one.shots, folder)
        meet(f"answering {name}")

    def score() -> dict[str, Any]:
        rows = read_rows(folder)
        finish(folder, [rows[item.key] for item in one.items])
        return score_folder(folder)

    return from_main_rank(score)


def _finish(
    out: Path,
    summaries: Sequence[dict[str, Any]],
    write_page: Callable[[Path], Path] | None,
) -> None:
    write_summary(out, summaries)
    print_scores(summaries)
    say(f"answers and scores: {out}")
    if write_page is not None:
        say(f"with examples: {write_page(out)}")


def _check_skipped(engine: Engine, summaries: Sequence[dict[str, Any]]) -> None:
    share = engine.config.data.max_skipped_share
    problems = []
    for some in summaries:
        num_skipped = some["num_skipped"]
        num_items = some["num_samples"] + num_skipped
        if num_skipped == num_items or too_many_skipped(num_skipped, num_items, share):
            reasons = ", ".join(f"{reason} {n:,}" for reason, n in some["skipped"].items())
            problems.append(
                f"{some['benchmark']}: {num_skipped:,} of {num_items:,} questions were skipped "
                f"({reasons}), more than data.max_skipped_share {share:g} of the checkpoint's "
                "configuration; skipped.jsonl has each with the reason"
            )
    if problems:
        raise DataError(*problems)
