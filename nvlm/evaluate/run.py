"""Answers held-out questions with a Megatron checkpoint, alone or under torchrun.

Every model replica (data-parallel rank) answers its share of the questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from nvlm.batch import SkippedSample, too_many_skipped
from nvlm.checkpoint_io import on_main_rank
from nvlm.config.schema import RunConfig
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ShardReader
from nvlm.data.text.encode import EncodedPrompt
from nvlm.errors import DataError
from nvlm.evaluate.fit import fit_question
from nvlm.evaluate.out_file import OutFile, check_out
from nvlm.evaluate.questions import HeldOut, Question, choose_questions, read_questions, with_data
from nvlm.evaluate.report import print_left_out, print_questions, print_repairs, print_scores
from nvlm.evaluate.rows import answer_row, read_images
from nvlm.evaluate.score import TaskScore, score_tasks
from nvlm.generate.engine import Engine
from nvlm.generate.engine_layout import layout_asked_for
from nvlm.generate.request import Sampling
from nvlm.generate.session import MAX_OPEN, Session
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import is_main_process
from nvlm.printing import say

MAX_NEW_TOKENS = 32

# A row of the output with the question's position.
Row = tuple[int, dict[str, Any]]


@dataclass
class _Read:
    """A question that can be asked, and what was answered so far."""

    question: Question
    repairs: dict[str, int]
    prompt: EncodedPrompt
    thrift: Thrift
    texts: list[str] = field(default_factory=list)
    answer_ids: list[int] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        return {
            **answer_row(self.question, "".join(self.texts), self.repairs),
            "prompt_token_ids": self.prompt.tokens.tolist(),
            "answer_token_ids": self.answer_ids,
            **self.thrift.as_fields(),
        }


def evaluate_checkpoint(
    checkpoint: Path,
    data_root: Path,
    split: str,
    out: Path,
    limit_per_task: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tensor: int | None = None,
    pipeline: int | None = None,
    thrift: Thrift | None = None,
) -> list[TaskScore]:
    """Answer the questions of `data_root/split` greedily and write JSON lines to `out`.

    What is asked, what is not and the scores are printed by the first process. `out` is whole once
    it is there, and a file of answers that was there stays until then.

    Args:
        checkpoint: a checkpoint or run folder, written at any layout. Its configuration says how
            samples are asked: prompt pools, system message, tiles, tags and limits.
        limit_per_task: at most this many samples of each task; None: all.
        max_new_tokens: longest answer.
        tensor, pipeline: layout of a replica; the processes left over answer other questions. Both
            None: the whole model in every process or, where it does not fit their devices, see
            `default_layout`.
        thrift: see `Engine`; noted in every row.

    Returns:
        Scores by task, on every process.

    Raises:
        NvlmError: no checkpoint, no questions, more samples that cannot be read than
            `data.max_skipped_share` allows, an `out` that cannot be written, or processes that do
            not fit. All but the images' decoding is checked before the model is loaded.
    """
    out = Path(out)
    layout = layout_asked_for(tensor, pipeline)
    with Engine(checkpoint, layout, wants_replicas=True, thrift=thrift) as engine:
        config = with_data(engine.config, data_root, split)
        check_out(out)
        with OutFile(out) if is_main_process() else nullcontext() as file:
            fit = partial(fit_question, config, engine.encoder, max_new_tokens)
            found = choose_questions(read_questions(config), limit_per_task, fit)
            if file is not None:
                print_questions(config, found)
                if file.replaces:
                    say(f"{out} has answers: they are replaced when all new ones are there")
            _check_share(config, found, [])
            engine.load()
            rows, left_out = _answer_share(engine, found.questions, max_new_tokens, file)
            if not rows:
                first = left_out[0]
                raise DataError(
                    f"no question could be asked; the first is {first.source} {first.shard} "
                    f"{first.key}: {first.reason}: {first.detail}"
                )
            scores = score_tasks(rows)
            on_main_rank(lambda: file and _finish(file, out, rows, left_out, scores))
    _check_share(config, found, left_out)
    return scores


def _finish(
    file: OutFile,
    out: Path,
    rows: Sequence[dict[str, Any]],
    left_out: Sequence[SkippedSample],
    scores: Sequence[TaskScore],
) -> None:
    file.finish(rows)
    print_left_out(left_out)
    print_repairs(rows)
    print_scores(scores)
    say(f"answers: {out}")


def _answer_share(
    engine: Engine, questions: Sequence[Question], max_new_tokens: int, file: OutFile | None
) -> tuple[list[dict[str, Any]], list[SkippedSample]]:
    """All rows in the questions' order, and what could not be decoded, on every process."""
    parallel = engine.parallel
    rows: list[Row] = []
    left_out: list[SkippedSample] = []
    with Session(engine) as session:
        if parallel.is_model_parallel_main:
            share = range(parallel.data_rank, len(questions), parallel.data_size)
            waiting = _read(engine, ((at, questions[at]) for at in share), max_new_tokens, left_out)
            for position, row in _answers(session, waiting, Sampling(max_new_tokens)):
                rows.append((position, row))
                if file is not None:
                    file.note(row)
        else:
            session.follow()
    gathered: list[Any] = [None] * parallel.world_size
    dist.all_gather_object(gathered, (rows, left_out))
    in_order = sorted((row for part, _ in gathered for row in part), key=lambda row: row[0])
    return [row for _, row in in_order], [sample for _, part in gathered for sample in part]


def _read(
    engine: Engine,
    questions: Iterator[tuple[int, Question]],
    max_new_tokens: int,
    left_out: list[SkippedSample],
) -> Iterator[tuple[int, _Read]]:
    """Those that can be asked; the others are added to `left_out`."""
    with ShardReader() as reader:
        for position, question in questions:
            try:
                images, repairs = read_images(
                    reader, question, engine.config.data.max_image_megapixels
                )
            except SampleError as error:
                left_out.append(question.left_out(error))
                continue
            most = question.max_num_tiles
            prompt = engine.prepare(question.messages, images, max_new_tokens, most)
            yield position, _Read(question, repairs, prompt, engine.thrift)


def _answers(
    session: Session, waiting: Iterator[tuple[int, _Read]], sampling: Sampling
) -> Iterator[Row]:
    """Rows as their answers end, read as there is room for more."""
    asked: dict[str, _Read] = {}
    while True:
        for position, read in islice(waiting, MAX_OPEN - session.num_open):
            asked[str(position)] = read
            session.add(str(position), read.prompt, sampling)
        if not session.num_open:
            return
        for progress in session.step():
            read = asked[progress.key]
            read.texts.append(progress.text)
            read.answer_ids += progress.token_ids
            if progress.finish_reason is not None:
                yield int(progress.key), asked.pop(progress.key).row()


def _check_share(config: RunConfig, found: HeldOut, also: Sequence[SkippedSample]) -> None:
    left_out = [*found.left_out, *also]
    num_samples = sum(counts.num_samples for counts in found.counts.values())
    share = config.data.max_skipped_share
    if not too_many_skipped(len(left_out), num_samples, share):
        return
    first = left_out[0]
    raise DataError(
        f"{len(left_out):,} of {num_samples:,} samples cannot be used, more than "
        f"data.max_skipped_share {share:g} of the checkpoint's configuration; the first is "
        f"{first.source} {first.shard} {first.key or '(shard)'}: {first.reason}: {first.detail}. "
        "Repair the data, or leave these samples out of it"
    )
