"""Answers with a share of each tile's tokens, or of each prompt's cache, against those with all.

    python benchmarks/thrift.py CHECKPOINT DATA_ROOT [--split heldout] [--limit-per-task 40]
        [--rounds 3]

A trained checkpoint, such as `nvlm demo` leaves it in `runs/demo/sft`, with its data in
`runs/demo/data`; nothing is trained. The split's questions are answered greedily on one process,
all shares in turn in each round, so that whatever else the machine does meets all of them. Printed
for each: the share of right answers, the tokens of all prompts and the keys that a layer keeps of
them when they were read, and the median of processor time, as ratios to the model with all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nvlm.data.shards.shard import ShardReader
from nvlm.data.text.encode import EncodedPrompt
from nvlm.evaluate.fit import fit_question
from nvlm.evaluate.questions import Question, choose_questions, read_questions, with_data
from nvlm.evaluate.rows import answer_row, read_images
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.generate.thrift import Thrift

MAX_NEW_TOKENS = 32
SHARES = (0.75, 0.5, 0.25, 0.125)
WAYS = [
    Thrift(),
    *(Thrift(visual_tokens=share) for share in SHARES),
    *(Thrift(cache=share) for share in SHARES),
    Thrift(0.5, 0.5),
]


@dataclass(frozen=True)
class Measured:
    """Of all questions together."""

    num_right: float
    num_tokens: int  # of prompts
    num_cached: int  # of them, by each layer
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--split", default="heldout")
    parser.add_argument("--limit-per-task", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with Engine(arguments.checkpoint) as loaded:
        loaded.load()
        config = with_data(loaded.config, arguments.data_root, arguments.split)
        # Chosen for the whole model: every way gets the same questions with the same tiles.
        fit = partial(fit_question, config, loaded.encoder, MAX_NEW_TOKENS)
        questions = choose_questions(
            read_questions(config), arguments.limit_per_task, fit
        ).questions
        found: dict[Thrift, list[Measured]] = defaultdict(list)
        for _ in range(arguments.rounds):
            for way in WAYS:
                engine = with_model_of(loaded, way)
                found[way].append(measured(engine, questions))
    show(found, len(questions))


def with_model_of(loaded: Engine, thrift: Thrift) -> Engine:
    """Another engine of the same weights."""
    engine = Engine(loaded.checkpoint, thrift=thrift)
    engine.model, engine.parallel = loaded.model, loaded.parallel
    engine.max_cache_tokens = loaded.max_cache_tokens
    return engine


def prepared(engine: Engine, questions: Sequence[Question]) -> list[EncodedPrompt]:
    prompts = []
    with ShardReader() as reader:
        for question in questions:
            images, _ = read_images(reader, question, engine.config.data.max_image_megapixels)
            prompts.append(
                engine.prepare(question.messages, images, MAX_NEW_TOKENS, question.max_num_tiles)
            )
    return prompts


def measured(engine: Engine, questions: Sequence[Question]) -> Measured:
    """One round; reading and cutting the images is not counted."""
    prompts = prepared(engine, questions)
    texts = [""] * len(prompts)
    seconds = 0.0
    with Session(engine) as session:
        for number, prompt in enumerate(prompts):
            session.add(str(number), prompt, Sampling(MAX_NEW_TOKENS))
        while session.num_open:
            started = time.process_time()
            progress = session.step()
            seconds += time.process_time() - started
            for part in progress:
                texts[int(part.key)] += part.text
    rows = [answer_row(q, text, {}) for q, text in zip(questions, texts, strict=True)]
    lengths = [len(prompt.tokens) for prompt in prompts]
    return Measured(
        sum(row["score"] for row in rows),
        sum(lengths),
        sum(map(engine.thrift.num_cached, lengths)),
        seconds,
    )


def show(found: dict[Thrift, list[Measured]], num_questions: int) -> None:
    table = Table("tiles' tokens", "cache", "right", "prompt tokens", "cached", "time")
    whole = found[WAYS[0]]
    for way, rounds in found.items():
        assert len({some.num_right for some in rounds}) == 1, "greedy answers are the same"
        one = rounds[0]

        def ratio(name: str, rounds: list[Measured] = rounds) -> str:
            """Of medians; counts are the same in every round."""
            values = [[getattr(some, name) for some in each] for each in (rounds, whole)]
            own, of_whole = map(statistics.median, values)
            return f"{own / of_whole:.3f}"

        table.add_row(
            f"{way.visual_tokens:g}",
            f"{way.cache:g}",
            f"{100 * one.num_right / num_questions:.1f} %",
            *map(ratio, ("num_tokens", "num_cached", "seconds")),
        )
    console = Console()
    console.print(table)
    num_tokens = whole[0].num_tokens / num_questions
    each_ms = 1000 * statistics.median(some.seconds for some in whole) / num_questions
    console.print(
        f"{num_questions} questions; with all: {num_tokens:.1f} tokens and {each_ms:.1f} ms each"
    )


if __name__ == "__main__":
    main()
