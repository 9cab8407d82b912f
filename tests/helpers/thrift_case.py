"""Answers with fewer tokens: `python thrift_case.py MODEL OUT TENSOR PIPELINE`, on each process.

The process that leads writes the answers to OUT.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers import questions
from nvlm.config.schema import ParallelConfig
from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.request import Sampling
from nvlm.generate.thrift import Thrift

THRIFT = Thrift(0.5, 0.4)
NUM_PROMPTS = 8


def prompts(engine, count: int) -> list[EncodedPrompt]:
    """Random ones with the placeholders that the engine's shares leave of each tile."""
    of_tile = engine.config.model.num_tokens_per_tile
    num_kept = engine.thrift.num_tokens_per_tile(of_tile)
    found = []
    for prompt in questions.random_prompts(engine.config, engine.encoder.tokenizer.image_id, count):
        is_kept = np.ones(len(prompt.tokens), bool)
        is_kept[prompt.image_mask] = np.arange(prompt.image_mask.sum()) % of_tile < num_kept
        tokens, mask = prompt.tokens[is_kept], prompt.image_mask[is_kept]
        found.append(replace(prompt, tokens=tokens, image_mask=mask))
    return found


def asked(engine) -> dict:
    return {
        str(number): (prompt, Sampling(4 + number))
        for number, prompt in enumerate(prompts(engine, NUM_PROMPTS))
    }


def main() -> None:
    model, out, tensor, pipeline = sys.argv[1:]
    from nvlm.generate.engine import Engine
    from nvlm.generate.session import Session

    layout = ParallelConfig(tensor=int(tensor), pipeline=int(pipeline))
    with Engine(model, layout, thrift=THRIFT) as engine:
        engine.load()
        with Session(engine) as session:
            if engine.parallel.is_model_parallel_main:
                answers = questions.answer_all(session, asked(engine))
                found = {key: answer.token_ids for key, answer in answers.items()}
                Path(out).write_text(json.dumps(found))
            else:
                session.follow()


if __name__ == "__main__":
    main()
