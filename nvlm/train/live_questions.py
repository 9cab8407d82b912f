"""Held-out questions that a training's model is asked while it trains, and what it said when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console

from nvlm import phases
from nvlm.batch import SkippedSample
from nvlm.config import RunConfig
from nvlm.config.changed import changed
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ShardReader
from nvlm.data.text.encode import SampleEncoder
from nvlm.data.text.prepare import prepare_prompt
from nvlm.errors import DataError
from nvlm.evaluate.fit import fit_question
from nvlm.evaluate.questions import HeldOut, Question, choose_questions, read_questions
from nvlm.evaluate.rows import answer_row, read_images
from nvlm.evaluate.score import score_tasks
from nvlm.files import json_line
from nvlm.printing import printable
from nvlm.train.live_answers import Prompt, answer_live, drop_later_records, open_encoder
from nvlm.train.run_folder import GENERATIONS_FILE
from nvlm.train.training import Training


def choose_live_questions(config: RunConfig) -> list[Question]:
    """Up to `validation.questions` of each task, those that `nvlm evaluate` would choose.

    Raises:
        DataError: there are none.
    """
    wanted = config.validation
    if wanted.every is None or not wanted.questions:
        return []
    try:
        found = read_questions(changed(config, {"data.split": wanted.split}))
        if wanted.sources is not None:
            questions = [q for q in found.questions if q.source in wanted.sources]
            found = HeldOut(questions, found.counts, found.left_out)
            if not questions:
                raise DataError(f"validation.sources {', '.join(wanted.sources)}: have no question")
        encoder = SampleEncoder.from_config(config)
        fit = partial(fit_question, config, encoder, wanted.max_new_tokens)
        return choose_questions(found, wanted.questions, fit).questions
    except DataError as error:
        raise DataError(
            f"validation.questions {wanted.questions} of validation.split {wanted.split}: {error}; "
            "or set validation.questions=0"
        ) from None


class LiveQuestions:
    """Asks `questions`, the same on every rank. Every rank makes one and calls its methods."""

    def __init__(self, training: Training, questions: Sequence[Question], console: Console):
        self._training = training
        self._questions = questions
        self._console = console
        self._path = Path(training.config.run.dir) / GENERATIONS_FILE
        drop_later_records(self._path, training, console)
        self._tokenizer, self._encoder = open_encoder(training.config)

    def ask(self) -> dict[str, float]:
        """`exact_match` of all questions and of each task, on every rank; notes the answers.

        In evaluation mode and without gradients.
        """
        training = self._training
        rows, left_out = self._answer_share()
        gathered: list[Any] = [None] * training.parallel.world_size
        dist.all_gather_object(gathered, (rows, left_out))
        in_order = sorted(row for part, _ in gathered for row in part)
        rows = [self._row(position, ids, repairs) for position, ids, repairs in in_order]
        left_out = [sample for _, part in gathered for sample in part]
        if training.parallel.is_main:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json_line({"step": training.step, **row}) for row in rows)
        for sample in left_out[:1]:
            self._console.print(
                printable(
                    f"{len(left_out)} held-out questions cannot be asked; the first is "
                    f"{sample.source} {sample.shard} {sample.key}: {sample.reason}: {sample.detail}"
                ),
                style="yellow",
                markup=False,
                highlight=False,
            )
        if not rows:
            return {}
        of_tasks = {f"exact_match/{s.task}": s.accuracy for s in score_tasks(rows)}
        return {"exact_match": sum(row["score"] for row in rows) / len(rows), **of_tasks}

    def _answer_share(self) -> tuple[list[tuple[int, list[int], dict]], list[SkippedSample]]:
        """(number of the question, answer's tokens, repairs) of this replica's questions."""
        training, chat = self._training, self._encoder.tokenizer
        asked: list[tuple[int, dict[str, int]]] = []
        left_out: list[SkippedSample] = []
        prompts = self._prompts(asked, left_out)
        most = training.config.validation.max_new_tokens
        answers = answer_live(training, prompts, most, chat.pad_id, chat.stop_ids)
        if not training.parallel.is_model_parallel_main:
            return [], []
        rows = [(n, ids, repairs) for (n, repairs), ids in zip(asked, answers, strict=True)]
        return rows, left_out

    def _prompts(
        self, asked: list[tuple[int, dict[str, int]]], left_out: list[SkippedSample]
    ) -> Iterator[Prompt]:
        """This replica's, each read when it is its turn; notes what is asked and what cannot be."""
        config, parallel = self._training.config, self._training.parallel
        most = config.data.max_image_megapixels
        with ShardReader() as reader:
            for number in range(parallel.data_rank, len(self._questions), parallel.data_size):
                phases.enter(phases.READING)
                question = self._questions[number]
                try:
                    images, repairs = read_images(reader, question, most)
                except SampleError as error:
                    left_out.append(question.left_out(error))
                    continue
                encoded = prepare_prompt(
                    config, self._encoder, question.messages, images, question.max_num_tiles
                )
                asked.append((number, repairs))
                yield Prompt(f"{question.source}/{question.sample_id}", encoded)

    def _row(self, number: int, ids: list[int], repairs: dict[str, int]) -> dict[str, Any]:
        text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        return answer_row(self._questions[number], text, repairs)
