"""`nvlm generate` with many questions: answered at once, written as they come.

Every model replica (data-parallel rank) answers its share. What is written is what one process
would have written.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nvlm.config.schema import ParallelConfig
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import EncodedPrompt
from nvlm.errors import DataError
from nvlm.files import read_json_lines
from nvlm.generate.answers_file import AnswersFile, PartFile, fingerprint, part_file
from nvlm.generate.ask_progress import AskProgress
from nvlm.generate.asked import Asked, read_images
from nvlm.generate.asked_files import AskedTogether
from nvlm.generate.engine import Engine
from nvlm.generate.request import Progress, Sampling
from nvlm.generate.session import Session
from nvlm.generate.thrift import Thrift
from nvlm.parallel.agreement import from_main_rank, on_ranks
from nvlm.places import check_file
from nvlm.printing import counted, listed, say

# Questions that are handed to the session at a time, and read ahead of it.
_MOST_OPEN = 96
_NUM_READERS = 2
_MOST_AHEAD = 16
_NUM_NAMED = 10
_TOO_LONG = "too_long"


@dataclass
class _Open:
    """A question whose answer is being made."""

    asked: Asked
    num_prompt_tokens: int
    repaired: dict[str, int]
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Ready:
    """A question that was read: its prompt, or what is wrong with it."""

    position: int
    prompt: EncodedPrompt | SampleError
    repaired: dict[str, int] = field(default_factory=dict)


def ask_all(
    checkpoint: Path,
    together: AskedTogether,
    out: Path,
    system: str | None,
    sampling: Sampling,
    layout: ParallelConfig | None = None,
    thrift: Thrift | None = None,
) -> None:
    """Answer all questions and write a JSON object for each to `out`, in their order.

    Rows are appended as they come; the same call goes on where an earlier one was ended. What
    cannot be asked is a row with an `error`.

    Args:
        system, sampling: what the questions were read with.
        layout, thrift: see `Engine`.

    Raises:
        NvlmError: see `Engine` and `AnswersFile`; or none of the questions could be asked.
    """
    asked = together.asked
    from_main_rank(lambda: check_file(out, "--out"))
    with Engine(checkpoint, layout, thrift=thrift) as engine, ExitStack() as files:
        file: AnswersFile | None = None

        def open_file() -> list[int]:
            nonlocal file
            settings = _settings(engine, system, sampling)
            file = opened = AnswersFile(out, asked, settings)
            files.enter_context(opened)
            _say_before(together, opened, out)
            return sorted(opened.done)

        done = set(from_main_rank(open_file))
        missing = [place for place in range(len(asked)) if place not in done]
        if missing:
            engine.load()
            _answer_share(engine, asked, missing, out, file)
            parallel = engine.parallel
            # Replicas may need hours more than others: no collective would wait as long.
            on_ranks(range(parallel.world_size), lambda: None)
            on_ranks([0], lambda: file and _finish(file, parallel.data_size, out))
        else:
            on_ranks([0], lambda: file and _finish_again(file, out))


def _settings(engine: Engine, system: str | None, sampling: Sampling) -> dict[str, Any]:
    model = {"checkpoint": str(engine.checkpoint), "model": fingerprint(engine.checkpoint)}
    return {**model, "system": system, **asdict(sampling), **engine.thrift.as_fields()}


def _say_before(together: AskedTogether, file: AnswersFile, out: Path) -> None:
    for note in file.notes:
        say(note)
    num_asked, num_done = len(together.asked), len(file.done)
    if together.unread:
        found = listed((f"{name} {n:,}" for name, n in sorted(together.unread.items())), 8)
        say(f"files of formats that are not read: {found}")
    if num_done == num_asked:
        say(f"{out} is complete: it has a row for each of {counted(num_asked, 'question')}")
    elif num_done:
        asked = counted(num_asked, "question")
        say(f"{out} has rows of {num_done:,} of {asked}: going on with the others")
    else:
        say(f"asking {counted(num_asked, 'question')}")


def _finish(file: AnswersFile, num_replicas: int, out: Path) -> None:
    file.finish(num_replicas)
    _report(out)


def _finish_again(file: AnswersFile, out: Path) -> None:
    """Where all rows are there: rows with an error are errors the second time, too."""
    if not file.is_in_order:  # a kill came before the end
        file.finish(1)
    if _report(out):
        say("questions whose row has an error are asked again once that row is removed")


def _report(out: Path) -> int:
    """Say what became of the questions; returns how many have an error.

    Raises:
        DataError: all of them.
    """
    num_rows, errors, repairs = 0, Counter[str](), Counter[str]()
    named = []
    for row in read_json_lines(out):
        num_rows += 1
        repairs.update(row.get("repaired", {}))
        if error := row.get("error"):
            errors[error["reason"]] += 1
            if len(named) < _NUM_NAMED:
                named.append(f"not answered: {row['id']}: {error['reason']}: {error['detail']}")
    for line in named:
        say(line)
    if errors.total() > len(named):
        say(f"... and {errors.total() - len(named):,} more; each has an `error` in {out}")
    if repairs:
        said = ", ".join(f"{what} {number:,}" for what, number in sorted(repairs.items()))
        say(f"repaired as in training: {said}")
    said = ", ".join(f"{reason} {number:,}" for reason, number in sorted(errors.items()))
    without = f", {errors.total():,} with an error ({said})" if errors else ""
    say(f"{counted(num_rows - errors.total(), 'answer')}{without}: {out}")
    if errors.total() == num_rows:
        raise DataError(
            f"of {counted(num_rows, 'question')} none could be asked; {out} says why of each. Once "
            f"that is put right, remove {out}, or give another --out"
        )
    return errors.total()


def _answer_share(
    engine: Engine,
    asked: Sequence[Asked],
    missing: Sequence[int],
    out: Path,
    file: AnswersFile | None,
) -> None:
    """This replica's questions, each a row in `file` or in the replica's part."""
    parallel = engine.parallel
    share = missing[parallel.data_rank :: parallel.data_size]
    with Session(engine) as session, ExitStack() as files:
        if not parallel.is_model_parallel_main:
            session.follow()
            return
        rows: PartFile | None = file
        if rows is None:
            rows = files.enter_context(PartFile(part_file(out, parallel.data_rank)))
            rows.lock()
        progress = files.enter_context(
            AskProgress(len(share), parallel.data_size, is_shown=parallel.is_main)
        )
        for row in _rows(engine, session, asked, share):
            rows.add(row)
            progress.advance(row.get("num_tokens", 0), "error" in row)


def _rows(
    engine: Engine, session: Session, asked: Sequence[Asked], share: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """A row for each question, as its answer ends."""
    open_questions: dict[str, _Open] = {}
    with ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="read-questions") as readers:
        ready = _read_ahead(readers, engine, asked, share)
        is_more = True
        while is_more or open_questions:
            while is_more and session.num_open < _MOST_OPEN:
                read = next(ready, None)
                if read is None:
                    is_more = False
                    break
                question, prompt = asked[read.position], read.prompt
                if isinstance(prompt, SampleError):
                    yield _error_row(question, prompt)
                    continue
                key = str(read.position)
                try:
                    session.add(key, prompt, question.sampling)
                except DataError as error:  # never room in the session's cache
                    yield _error_row(question, SampleError(_TOO_LONG, str(error)))
                    continue
                open_questions[key] = _Open(question, len(prompt.tokens), read.repaired)
            for progress in session.step():
                if row := _advance(open_questions, progress):
                    yield row


def _read_ahead(
    readers: ThreadPoolExecutor, engine: Engine, asked: Sequence[Asked], share: Sequence[int]
) -> Iterator[_Ready]:
    """The questions in order, some of them read while others are answered."""
    reading: deque[Future[_Ready]] = deque()
    for position in share:
        reading.append(readers.submit(_read, engine, position, asked[position]))
        if len(reading) > _MOST_AHEAD:
            yield reading.popleft().result()
    while reading:
        yield reading.popleft().result()


def _read(engine: Engine, position: int, question: Asked) -> _Ready:
    if question.problem is not None:
        return _Ready(position, question.problem)
    try:
        images, repairs = read_images(question.paths, engine.config.data.max_image_megapixels)
        prompt = engine.prepare(question.messages, images, question.sampling.max_new_tokens)
    except SampleError as error:
        return _Ready(position, error)
    except DataError as error:
        return _Ready(position, SampleError(_TOO_LONG, str(error)))
    return _Ready(position, prompt, dict(Counter(what for _, what in repairs)))


def _advance(open_questions: dict[str, _Open], progress: Progress) -> dict[str, Any] | None:
    """The row, where this is the end of an answer."""
    one = open_questions[progress.key]
    one.texts.append(progress.text)
    one.token_ids += progress.token_ids
    if progress.finish_reason is None:
        return None
    del open_questions[progress.key]
    return {
        **one.asked.as_fields(),
        "answer": "".join(one.texts),
        "finish_reason": progress.finish_reason,
        "num_prompt_tokens": one.num_prompt_tokens,
        "num_tokens": len(one.token_ids),
        "answer_token_ids": one.token_ids,
        **({"repaired": one.repaired} if one.repaired else {}),
    }


def _error_row(question: Asked, error: SampleError) -> dict[str, Any]:
    return {**question.as_fields(), "error": {"reason": error.reason, "detail": error.detail}}
