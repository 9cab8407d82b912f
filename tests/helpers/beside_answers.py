"""Questions with images for a small NVLM-X or NVLM-H: `python beside_answers.py MODEL OUT TENSOR
PIPELINE` under torchrun answers them, each process for itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from helpers.questions import answer_all
from nvlm.config.schema import ParallelConfig
from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.request import Sampling
from nvlm.parallel.groups import shut_down

GREEDY = Sampling(max_new_tokens=8)
# Height and width of each question's images: of one tile, of several, none.
IMAGES = [[(112, 112)], [(112, 336)], [], [(224, 112), (112, 112)], [(100, 200)]]


def prompts(engine) -> list[EncodedPrompt]:
    chance = np.random.default_rng(1)
    found = []
    for number, shapes in enumerate(IMAGES):
        pixels = [chance.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
        content = "<image>\n" * len(shapes) + "What is here? " * (number + 1)
        messages = [{"role": "user", "content": content}]
        found.append(engine.prepare(messages, pixels, GREEDY.max_new_tokens))
    return found


def answers(engine) -> list[list[int]]:
    """All questions at once; on processes that follow, none."""
    from nvlm.generate.session import Session

    with Session(engine) as session:
        if not engine.parallel.is_model_parallel_main:
            session.follow()
            return []
        asked = {str(n): (prompt, GREEDY) for n, prompt in enumerate(prompts(engine))}
        found = answer_all(session, asked)
    return [list(found[str(number)].token_ids) for number in range(len(asked))]


def main() -> None:
    model, out, tensor, pipeline = sys.argv[1:]
    from nvlm.generate.engine import Engine

    engine = Engine(model, ParallelConfig(tensor=int(tensor), pipeline=int(pipeline)))
    engine.load()
    if found := answers(engine):
        Path(out).write_text(json.dumps(found))
    shut_down()


if __name__ == "__main__":
    main()
