"""Published benchmarks that a training's model is asked while it trains, and what it scores.

Prompts, scorers and greedy answers are those of `nvlm evaluate --suite` for a checkpoint of the
same step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console

from nvlm import phases
from nvlm.data.samples.sample import SampleError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.suite.conversation import converse
from nvlm.evaluate.suite.prepare import make_ready
from nvlm.evaluate.suite.scores import Scored
from nvlm.evaluate.suite.settings import Asked
from nvlm.files import json_line
from nvlm.generate.answer_text import AnswerText
from nvlm.parallel.groups import broadcast_object
from nvlm.printing import printable
from nvlm.train.benchmark_files import BenchmarkQuestions, asked_benchmarks
from nvlm.train.live_answers import Prompt, answer_live, drop_later_records, open_encoder
from nvlm.train.run_folder import BENCHMARK_ANSWERS_FILE
from nvlm.train.training import Training

# A question's position, and what its row says beside the question.
_Row = tuple[int, dict[str, Any]]


class LiveBenchmarks:
    """Asks what `validation.benchmarks` names. Every rank makes one and calls its methods."""

    def __init__(
        self, training: Training, questions: Sequence[BenchmarkQuestions], console: Console
    ):
        """
        Args:
            questions: on the ranks that read; not looked at on others.
        """
        self._training = training
        self._asked = asked_benchmarks(training.config)
        self._items = {one.asked.name: one.items for one in questions}
        self._console = console
        self._path = Path(training.config.run.dir) / BENCHMARK_ANSWERS_FILE
        drop_later_records(self._path, training, console)
        self._tokenizer, self._encoder = open_encoder(training.config)

    def ask(self) -> dict[str, float]:
        """`benchmark/NAME` of each, the number that papers print, and `benchmark/NAME/PART` where
        it has parts; on every rank. Notes the answers.

        In evaluation mode and without gradients.
        """
        training = self._training
        found: dict[str, float] = {}
        for asked in self._asked:
            items = self._items.get(asked.name, ())
            gathered: list[Any] = [None] * training.parallel.world_size
            dist.all_gather_object(gathered, self._answer_share(asked, items))
            numbers: dict[str, float] = {}
            if training.parallel.is_main:
                rows = sorted((row for part in gathered for row in part), key=lambda row: row[0])
                numbers = self._score(asked, items, rows)
            found |= broadcast_object(numbers)
        return found

    def _answer_share(self, asked: Asked, items: Sequence[Item]) -> list[_Row]:
        """Of this replica's questions, on the process that reads for it; elsewhere none."""
        training, chat = self._training, self._encoder.tokenizer
        positions: list[int] = []
        skipped: list[_Row] = []
        prompts = self._prompts(asked, items, positions, skipped)
        most = asked.max_new_tokens
        answers = answer_live(training, prompts, most, chat.pad_id, chat.stop_ids)
        if not training.parallel.is_model_parallel_main:
            return []
        rows = [
            (position, {"answer": self._text_of(ids), "num_tokens": len(ids)})
            for position, ids in zip(positions, answers, strict=True)
        ]
        return rows + skipped

    def _prompts(
        self,
        asked: Asked,
        items: Sequence[Item],
        positions: list[int],
        skipped: list[_Row],
    ) -> Iterator[Prompt]:
        """This replica's, each read when it is its turn; notes what is asked and what cannot be."""
        config, parallel = self._training.config, self._training.parallel
        for position in range(parallel.data_rank, len(items), parallel.data_size):
            phases.enter(phases.READING)
            item = items[position]
            conversation = converse(asked.benchmark, item, (), asked.settings)
            try:
                ready = make_ready(config, self._encoder, conversation, asked.max_new_tokens, None)
            except SampleError as error:
                reason = {"reason": error.reason, "detail": error.detail}
                skipped.append((position, {"skipped": reason}))
                continue
            positions.append(position)
            yield Prompt(f"{asked.name}/{item.key}", ready.prompt)

    def _text_of(self, ids: Sequence[int]) -> str:
        """As a session gives it."""
        text = AnswerText(self._tokenizer)
        return ("".join([text.add(token) for token in ids]) + text.finish()).strip()

    def _score(self, asked: Asked, items: Sequence[Item], rows: Sequence[_Row]) -> dict[str, float]:
        """On the main process."""
        benchmark = asked.benchmark
        answered = [(items[at], row) for at, row in rows if "answer" in row]
        for item, row in answered:
            row["score"] = benchmark.score(item, row["answer"])
        about = {"step": self._training.step, "benchmark": asked.name}
        with self._path.open("a", encoding="utf-8") as file:
            for at, row in rows:
                item = items[at]
                file.write(json_line({**about, "key": item.key, "question": item.question, **row}))
        self._name_skipped(asked, items, rows)
        name = f"benchmark/{asked.name}"
        numbers: dict[str, float] = {}
        if len(answered) < len(rows):
            numbers[f"{name}/skipped"] = len(rows) - len(answered)
        if not answered:
            return numbers
        scored = Scored(
            benchmark,
            [item for item, _ in answered],
            [row["answer"] for _, row in answered],
            [row["score"] for _, row in answered],
        )
        parts = {f"{name}/{part}": number for part, number in scored.parts().items()}
        return {name: scored.number(), **parts, **numbers}

    def _name_skipped(self, asked: Asked, items: Sequence[Item], rows: Sequence[_Row]) -> None:
        skipped = [(at, row["skipped"]) for at, row in rows if "skipped" in row]
        for at, why in skipped[:1]:
            self._console.print(
                printable(
                    f"{len(skipped):,} questions of {asked.name} cannot be asked; the first is "
                    f"{items[at].key}: {why['reason']}: {why['detail']}"
                ),
                style="yellow",
                markup=False,
                highlight=False,
            )
