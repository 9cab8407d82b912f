"""A session of several processes: `python session_case.py MODEL OUT TENSOR PIPELINE [failing]`.

The process that leads a replica asks, twice with a pause between; the others follow. Each writes
what came of it: the leading one its answers, the others what `follow` raised.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from helpers import questions
from nvlm.config.schema import ParallelConfig
from nvlm.errors import DataError
from nvlm.generate.request import Sampling

NUM_PROMPTS = 10
FAILURE = "question 7: no such picture"


def answers(engine) -> list[dict]:
    """Of two rounds of questions: greedy ones, drawn ones, of many lengths."""
    from nvlm.generate.session import Session

    with Session(engine, max_open=6) as session:
        return ask(session, engine)


def ask(session, engine) -> list[dict]:
    image_id = engine.encoder.tokenizer.image_id
    prompts = questions.random_prompts(engine.config, image_id, NUM_PROMPTS)
    found = []
    # Questions that are taken back leave none open, whether their answers have begun or not.
    for number_of_steps in (0, 2):
        session.add("taken back", prompts[0], Sampling(9))
        for _ in range(number_of_steps):
            session.step()
        session.cancel("taken back")
        assert session.num_open == 0 and session.step() == []
    for pause_seconds, temperature in ((0.2, 0.0), (0.0, 0.8)):
        asked = {
            str(number): (prompt, Sampling(4 + number, temperature, 0.9, 50, seed=number))
            for number, prompt in enumerate(prompts)
        }
        found += [asdict(answer) for answer in questions.answer_all(session, asked).values()]
        time.sleep(pause_seconds)
    return found


def main() -> None:
    model, out, tensor, pipeline, *failing = sys.argv[1:]
    from nvlm.generate.engine import Engine
    from nvlm.generate.session import Session

    layout = ParallelConfig(tensor=int(tensor), pipeline=int(pipeline))
    found: object = "returned"
    with Engine(model, layout) as engine:
        engine.load()
        file = Path(f"{out}.{engine.parallel.rank}")
        try:
            with Session(engine, max_open=6) as session:
                if not engine.parallel.is_model_parallel_main:
                    session.follow()
                elif not failing:
                    found = ask(session, engine)
                else:
                    image_id = engine.encoder.tokenizer.image_id
                    (prompt,) = questions.random_prompts(engine.config, image_id, 1)
                    session.add("0", prompt, Sampling(5))
                    session.step()
                    raise DataError(FAILURE)
        except DataError as error:
            found = f"raised DataError: {error}"
        except ValueError as error:
            found = f"raised {type(error).__name__}: {error}"
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
