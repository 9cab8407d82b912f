"""Many questions answered at once: each gets the answer that it gets alone."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import generate_case, questions, small_model

from nvlm.errors import DataError
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.parallel.groups import initialize, shut_down

# Large random weights: answers that vary from token to token.
WEIGHTS = ["model.language.init_std=0.2", "model.projector.init_std=0.1"]
GREEDY = Sampling(max_new_tokens=10)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    config = small_model.small_config(*WEIGHTS)
    target = tmp_path_factory.mktemp("session") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    engine = Engine(target)
    engine.load()
    yield engine
    shut_down()


@pytest.fixture(scope="module")
def prompts(engine):
    return questions.random_prompts(engine.config, engine.encoder.tokenizer.image_id, 50)


@pytest.fixture(scope="module")
def alone(engine, prompts) -> list[list[int]]:
    """Greedy answers, one question after another."""
    end = {engine.encoder.tokenizer.end_id}
    return [
        engine.generate(p.tokens.tolist(), torch.from_numpy(p.tiles), 10, stop_ids=end)
        for p in prompts
    ]


def test_all_at_once_get_the_answers_that_they_get_alone(engine, prompts, alone):
    with Session(engine) as session:
        asked = {str(i): (prompt, GREEDY) for i, prompt in enumerate(prompts)}
        answers = questions.answer_all(session, asked)
    assert [list(answers[str(i)].token_ids) for i in range(50)] == alone
    assert [a.text for a in answers.values()] == [engine.text_of(ids) for ids in alone]
    assert len({token for ids in alone for token in ids}) > 50, "answers that vary"


@pytest.mark.parametrize("max_open, max_cache_tokens", [(64, None), (5, None), (64, 2048)])
def test_any_order_with_questions_that_are_taken_back(
    max_open, max_cache_tokens, engine, prompts, alone
):
    chance = random.Random(f"{max_open} {max_cache_tokens}")
    waiting = [(i, chance.randint(1, 10)) for i in range(50)]
    chance.shuffle(waiting)
    cancelled = {i for i, _ in chance.sample(waiting, 15)}
    got: dict[int, list[int]] = {i: [] for i in range(50)}
    most_open = 0
    with Session(engine, max_open, max_cache_tokens) as session:
        while waiting or session.num_open:
            for _ in range(min(len(waiting), chance.randint(0, 4))):
                i, most = waiting.pop()
                session.add(str(i), prompts[i], Sampling(max_new_tokens=most))
            progress = session.step()
            most_open = max(most_open, len(progress))
            for part in progress:
                number = int(part.key)
                got[number] += part.token_ids
                if number in cancelled and part.finish_reason is None and chance.random() < 0.3:
                    session.cancel(part.key)
        cache = session._decoder.cache
        assert cache.num_allocated_tokens <= cache.max_tokens
    assert most_open <= max_open and most_open > 3
    assert all(ids and ids == alone[i][: len(ids)] for i, ids in got.items())
    assert sum(map(len, got.values())) > 150


def test_room_that_is_freed_is_used_again(engine, prompts):
    """Of questions that come one by one, none makes the cache larger."""
    from nvlm.model.parts.cache import row_length

    with Session(engine) as session:
        cache = session._decoder.cache
        for number in range(3):
            questions.answer_all(session, {str(number): (prompts[0], GREEDY)})
        num_tokens = len(prompts[0].tokens) + GREEDY.max_new_tokens
        assert cache.num_allocated_tokens == row_length(num_tokens)


def test_a_question_that_can_never_fit_is_refused(engine, prompts):
    with Session(engine, max_cache_tokens=512) as session:
        long = Sampling(max_new_tokens=513 - len(prompts[0].tokens))
        with pytest.raises(DataError, match="take 768 of the cache, which has room for 512"):
            session.add("long", prompts[0], long)
        with pytest.raises(DataError, match="max_position_embeddings"):
            session.add("longer", prompts[0], Sampling(max_new_tokens=10**6))
        assert session.num_open == 0 and session.step() == []
