"""Run under torchrun: every process asks a share of its own, by `answer_share`.

Usage: asked_by_all_case.py CHECKPOINT OUT TENSOR [failing]
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from helpers import questions
from nvlm.config.schema import ParallelConfig
from nvlm.errors import DataError, NvlmError
from nvlm.generate.request import Sampling

SHARES = (5, 0, 3, 1)  # questions of each rank
FAILURE = "document 7: no such picture"


def prompts(engine) -> list:
    return questions.random_prompts(engine.config, engine.encoder.tokenizer.image_id, sum(SHARES))


def share_of(rank: int) -> range:
    start = sum(SHARES[:rank])
    return range(start, start + SHARES[rank])


def sampling(number: int) -> Sampling:
    return Sampling(6 + number)


def refuse() -> None:
    raise DataError(FAILURE)


def main() -> None:
    checkpoint, out, tensor, *failing = sys.argv[1:]
    from nvlm.generate.engine import Engine
    from nvlm.plugins import asked_by_all

    asked_by_all._QUESTIONS_PER_ROUND = 2
    with Engine(checkpoint, ParallelConfig(tensor=int(tensor))) as engine:
        engine.load()
        rank = engine.parallel.rank
        asked = prompts(engine)
        share: list = [partial(lambda n: (asked[n], sampling(n)), n) for n in share_of(rank)]
        if failing and rank == 0:
            share[3] = refuse
        try:
            answers = asked_by_all.answer_share(engine, share)
            found: object = [[answer.text, answer.num_tokens] for answer in answers]
        except NvlmError as error:
            found = str(error)
        Path(f"{out}.{rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
