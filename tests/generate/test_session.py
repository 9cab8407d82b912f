"""Many questions answered at once: each gets the answer that it gets alone."""

from __future__ import annotations

import json
import random

import pytest
import torch
from helpers import generate_case, questions, session_case, small_model, spawn
from helpers.synchronisations import counted

from nvlm.errors import DataError
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.parallel.groups import initialize, shut_down

# Large random weights: answers that vary from token to token.
WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]
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


def test_a_seed_gives_its_answer_whatever_is_answered_beside_it(engine, prompts):
    hot = [
        Sampling(8, temperature=0.5 + i % 3, top_p=1 - (i % 2) / 10, top_k=(i % 4) * 20, seed=i)
        for i in range(12)
    ]
    with Session(engine) as session:
        asked = {str(i): (prompts[i], hot[i]) for i in range(12)}
        together = questions.answer_all(session, asked)
        again = questions.answer_all(session, dict(reversed(asked.items())))
    alone = {}
    for key, question in asked.items():
        with Session(engine) as session:
            alone |= questions.answer_all(session, {key: question})
    assert together == alone == again
    other = {key: (prompt, Sampling(8, 1.0, seed=99)) for key, (prompt, _) in asked.items()}
    with Session(engine) as session:
        assert questions.answer_all(session, other) != together


def test_a_stop_text_ends_an_answer(engine, prompts, alone):
    """One that spans tokens, so that some of them were the answer's before it was there."""
    number, ids = next(
        (i, ids) for i, ids in enumerate(alone) if len(ids) == 10 and engine.text_of(ids).isascii()
    )
    whole = engine.text_of(ids)
    before = len(engine.text_of(ids[:4]))
    stop = whole[before - 1 : before + 2]
    with Session(engine) as session:
        sampling = Sampling(10, stop=("nowhere", stop))
        found = questions.answer_all(session, {"0": (prompts[number], sampling)})["0"]
        assert session.num_open == 0
    assert found.finish_reason == "stop" and len(found.token_ids) < 10
    assert found.text == whole.partition(stop)[0].strip()
    assert list(found.token_ids) == ids[: len(found.token_ids)]


def test_an_answer_ends_with_its_turn_or_its_length(engine, prompts, alone, monkeypatch):
    ids = next(ids for ids in alone if len(set(ids)) > 5)
    number = alone.index(ids)
    ends = {}
    with Session(engine) as session:
        ends["length"] = questions.answer_all(session, {"0": (prompts[number], Sampling(5))})["0"]
        monkeypatch.setattr(engine, "stop_ids", {ids[5]})
        ends["stop"] = questions.answer_all(session, {"1": (prompts[number], GREEDY)})["1"]
    assert list(ends["length"].token_ids) == ids[:5]
    assert list(ends["stop"].token_ids) == ids[: ids.index(ids[5]) + 1]
    assert all(answer.finish_reason == reason for reason, answer in ends.items())


def test_the_host_waits_for_the_device_once_a_step(engine, prompts):
    """Whatever the step does: begin answers, draw tokens, move rows of those that have ended."""
    with Session(engine) as session:
        for number in range(6):
            session.add(str(number), prompts[number], Sampling(2 + number, temperature=number / 3))
        while session.num_open:
            with counted() as found:
                session.step()
            assert found == {"tolist in generate/decoder.py run": 1}


@pytest.mark.parallel
@pytest.mark.parametrize(
    "tensor, pipeline",
    # Tensor parallelism by itself is in test_model_folder.py.
    [(1, 2), *(pytest.param(2, size, marks=pytest.mark.slow) for size in (1, 2))],
)
def test_layouts_give_the_same_answers(tensor, pipeline, engine, tmp_path):
    """The process with the questions leads, the others follow until it closes."""
    expected = json.loads(json.dumps(session_case.answers(engine)))
    assert len({tuple(answer["token_ids"]) for answer in expected}) == len(expected)
    count, out = tensor * pipeline, tmp_path / "answers"
    program = (session_case.__file__, engine.checkpoint, out, str(tensor), str(pipeline))
    spawn.run_program_or_fail(count, *program, log=tmp_path / "log")
    found = [json.loads(out.with_name(f"answers.{rank}").read_text()) for rank in range(count)]
    assert found == [expected] + ["returned"] * (count - 1)


@pytest.mark.parallel
def test_those_who_follow_end_where_the_leading_process_fails(engine, tmp_path):
    out = tmp_path / "answers"
    program = (session_case.__file__, engine.checkpoint, out, "2", "1", "failing")
    spawn.run_program_or_fail(2, *program, log=tmp_path / "log")
    found = [json.loads(out.with_name(f"answers.{rank}").read_text()) for rank in range(2)]
    assert found[0] == f"raised DataError: {session_case.FAILURE}"
    assert found[1] == f"raised NvlmError: {session_case.FAILURE}"


@pytest.mark.slow
@pytest.mark.parallel
def test_replicas_have_sessions_of_their_own(engine, tmp_path):
    expected = json.loads(json.dumps(session_case.answers(engine)))
    out = tmp_path / "answers"
    program = (session_case.__file__, engine.checkpoint, out, "1", "1")
    spawn.run_program_or_fail(2, *program, log=tmp_path / "log")
    for rank in range(2):
        assert json.loads(out.with_name(f"answers.{rank}").read_text()) == expected
