"""Answers that keep a share of a prompt: what is kept, and that nothing else of it changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import generate_case, questions, small_model, spawn, thrift_case

from nvlm.errors import DataError
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import initialize, shut_down

WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]
GREEDY = Sampling(max_new_tokens=8)
FEWER = [Thrift(visual_tokens=0.5), Thrift(cache=0.4), Thrift(0.3, 0.5)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = small_model.small_config(*WEIGHTS)
    target = tmp_path_factory.mktemp("thrift") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()
    return target


@pytest.fixture(scope="module")
def engines(checkpoint):
    """By what they keep; of one model."""
    loaded = Engine(checkpoint)
    loaded.load()

    def engine_of(thrift: Thrift | None) -> Engine:
        engine = Engine(checkpoint, thrift=thrift)
        engine.model, engine.parallel = loaded.model, loaded.parallel
        engine.max_cache_tokens = loaded.max_cache_tokens
        return engine

    yield engine_of
    shut_down()


def answers(engine: Engine, prompts, at_once: bool = True) -> list[list[int]]:
    asked = {str(number): (prompt, GREEDY) for number, prompt in enumerate(prompts)}
    found = {}
    with Session(engine) as session:
        if at_once:
            found = questions.answer_all(session, asked)
        for key, question in asked.items() if not at_once else ():
            found |= questions.answer_all(session, {key: question})
    return [list(found[key].token_ids) for key in asked]


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), float("inf"), True, "half"])
@pytest.mark.parametrize("name", ["visual_tokens", "cache"])
def test_a_share_that_means_nothing_is_refused(name, share):
    with pytest.raises(DataError, match=f"share of {name.replace('_', ' ')} to keep is"):
        Thrift(**{name: share})


def test_what_a_share_leaves():
    half = Thrift(0.5, 0.25)
    assert (half.num_tokens_per_tile(256), half.num_cached(1000)) == (128, 250)
    assert Thrift(0.001, 0.001).num_tokens_per_tile(16) == 1 == Thrift(0.1, 0.001).num_cached(9)
    assert Thrift().num_cached(7) == 7 and Thrift().as_fields() == {}
    assert half.as_fields() == {"keep_visual_tokens": 0.5, "keep_cache": 0.25}


def test_all_of_a_prompt_is_what_no_share_is(engines, monkeypatch):
    """To the last bit: nothing is merged, nothing evicted."""
    import torch

    from nvlm.generate import decoder

    seen: list[torch.Tensor] = []
    choose = decoder.choose_tokens

    def noted(logits, drawings):
        seen.append(logits.clone())
        return choose(logits, drawings)

    monkeypatch.setattr(decoder, "choose_tokens", noted)
    logits = []
    for thrift in (None, Thrift(1.0, 1)):
        engine = engines(thrift)
        answers(engine, thrift_case.prompts(engine, 6))
        logits.append(torch.cat([some.flatten() for some in seen]))
        seen.clear()
    assert torch.equal(*logits)


@pytest.mark.parametrize("thrift", FEWER, ids=str)
def test_many_at_once_get_the_answers_that_they_get_alone(thrift, engines):
    engine = engines(thrift)
    prompts = thrift_case.prompts(engine, 12)
    together = answers(engine, prompts)
    assert together == answers(engine, prompts, at_once=False)
    assert together[0] == engine.answer(prompts[0], GREEDY.max_new_tokens).answer_ids
    whole = answers(engines(None), thrift_case.prompts(engines(None), 12))
    assert all(together) and together != whole, "there is less to go by"


def test_the_first_token_is_that_of_the_whole_cache(engines):
    """Eviction comes after the prompt was read."""
    engine, whole = engines(Thrift(cache=0.2)), engines(None)
    prompts = thrift_case.prompts(engine, 12)
    pairs = zip(answers(engine, prompts), answers(whole, prompts), strict=True)
    assert all(few[0] == many[0] for few, many in pairs)


def test_prompts_and_the_cache_are_as_short_as_reckoned(engines):
    engine, whole = engines(Thrift(0.25, 0.5)), engines(None)
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    turns = [{"role": "user", "content": "<image>\nWhat is it? " + "Look closely. " * 120}]
    short, long = (some.prepare(turns, [image], 40) for some in (engine, whole))
    of_tile = engine.config.model.num_tokens_per_tile
    assert len(short.tiles) == len(long.tiles) > 1 and of_tile % 4 == 0
    assert long.image_mask.sum() == len(long.tiles) * of_tile
    assert len(long.tokens) - len(short.tokens) == len(long.tiles) * of_tile * 3 // 4
    assert (long.tokens[~long.image_mask] == short.tokens[~short.image_mask]).all()
    with Session(engine) as session:
        session.add("0", short, Sampling(40))
        session.step()
        (shelf,) = session._decoder.cache.shelves()
        (question,) = shelf.owners
        assert question.num_tokens == len(short.tokens)
        assert question.num_cached == round(len(short.tokens) / 2)
        held = [keys[0].abs().sum((0, 2)).count_nonzero() for keys in shelf.keys.values()]
        assert held == [question.num_cached] * len(held)
        session.step()
        assert question.num_cached == round(len(short.tokens) / 2) + 1
        assert question.num_tokens == len(short.tokens) + 1
        # The row, too: that of the whole prompt is longer.
        assert shelf.length < len(short.tokens) + 40
    with Session(engine, max_cache_tokens=shelf.length) as session:
        assert questions.answer_all(session, {"0": (short, Sampling(40))})["0"].token_ids


def test_a_prompt_of_other_shares_is_refused(engines):
    prompt = thrift_case.prompts(engines(None), 2)[1]
    refused = pytest.raises(DataError, match="1 tiles x 8 tokens that are kept of 16")
    with Session(engines(Thrift(0.5))) as session, refused:
        session.add("0", prompt, GREEDY)


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize("tensor, pipeline", [(2, 1), (1, 2)])
def test_layouts_give_the_same_answers(tensor, pipeline, engines, checkpoint, tmp_path):
    engine = engines(thrift_case.THRIFT)
    with Session(engine) as session:
        found = questions.answer_all(session, thrift_case.asked(engine))
    expected = {key: list(answer.token_ids) for key, answer in found.items()}
    out = tmp_path / "answers"
    program = (thrift_case.__file__, checkpoint, out, str(tensor), str(pipeline))
    spawn.run_program_or_fail(2, *program, log=tmp_path / "log")
    assert json.loads(out.read_text()) == expected
