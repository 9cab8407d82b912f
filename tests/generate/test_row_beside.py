"""NVLM-X and NVLM-H answer with a cache of what is beside the prompt as they do without any."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import beside_answers, beside_batches, generate_case, spawn
from helpers.beside_batches import FUSIONS

from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.text.encode import EncodedPrompt, EncodedSample
from nvlm.errors import DataError
from nvlm.generate.engine import Engine
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import initialize, shut_down

# Large random weights: answers that vary from token to token, and with the images.
WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]


@pytest.fixture(scope="module", params=FUSIONS)
def engine(request, tmp_path_factory):
    config = beside_batches.config_of(request.param, *WEIGHTS)
    target = tmp_path_factory.mktemp("beside") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    engine = Engine(target)
    engine.load()
    yield engine
    shut_down()


def recomputed(engine: Engine, prompt: EncodedPrompt) -> list[int]:
    """The most likely answer by passes over all tokens, as in training."""
    end, answer = engine.encoder.tokenizer.end_id, []
    while len(answer) < beside_answers.GREEDY.max_new_tokens and end not in answer:
        tokens = np.concatenate([prompt.tokens, np.array(answer, np.int64)])
        image_mask = np.concatenate([prompt.image_mask, np.zeros(len(answer), np.bool_)])
        assert prompt.beside is not None
        beside = prompt.beside.followed_by(len(answer))
        sample = EncodedSample(tokens, np.zeros_like(tokens), image_mask, beside)
        size = engine.config.model.vision.image_size
        row = [[PackedSample("", sample, prompt.tiles)]]
        batch = build_micro_batch(row, len(tokens), size, 0, has_beside=True)
        with torch.no_grad():
            logits = engine.model(batch, return_logits=True)
        answer.append(int(logits[0, -1].argmax()))
    return answer


def test_answers_with_a_cache_are_those_by_recomputation(engine):
    prompts = beside_answers.prompts(engine)
    assert {p.beside is not None and bool(len(p.beside.tokens)) for p in prompts} == {True, False}
    expected = [recomputed(engine, prompt) for prompt in prompts]
    assert len({token for answer in expected for token in answer}) > 10, "answers that vary"
    alone = [
        engine.answer(prompt, beside_answers.GREEDY.max_new_tokens).answer_ids for prompt in prompts
    ]
    assert alone == expected
    assert beside_answers.answers(engine) == expected


def test_answers_depend_on_what_is_beside(engine):
    """Otherwise none of these tests would see a row that is mixed up."""
    prompt = beside_answers.prompts(engine)[1]
    other = EncodedPrompt(prompt.tokens, prompt.image_mask, 255 - prompt.tiles, prompt.beside)
    (one, another) = (engine.answer(p, 8).answer_ids for p in (prompt, other))
    assert one != another


@pytest.mark.slow
@pytest.mark.parallel
@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
def test_several_processes_give_the_same_answers(tensor, pipeline, engine, tmp_path):
    out = tmp_path / "answers"
    program = (beside_answers.__file__, engine.checkpoint, out, str(tensor), str(pipeline))
    spawn.run_program_or_fail(tensor * pipeline, *program, log=tmp_path / "log")
    assert json.loads(out.read_text()) == beside_answers.answers(engine)


def test_visual_tokens_beside_are_not_merged(engine):
    with pytest.raises(DataError, match="a share of visual tokens to keep is for models"):
        Engine(engine.checkpoint, thrift=Thrift(visual_tokens=0.5))


def test_a_share_of_the_cache_leaves_what_is_beside(engine):
    """The first token is the whole cache's; questions asked together are as asked alone."""
    whole = beside_answers.answers(engine)
    thrift = Engine(engine.checkpoint, thrift=Thrift(cache=0.4))
    thrift.model, thrift.parallel = engine.model, engine.parallel
    thrift.max_cache_tokens = engine.max_cache_tokens
    found = beside_answers.answers(thrift)
    prompts = beside_answers.prompts(thrift)
    alone = [
        thrift.answer(prompt, beside_answers.GREEDY.max_new_tokens).answer_ids for prompt in prompts
    ]
    assert found == alone and found != whole
    assert [ids[0] for ids in found] == [ids[0] for ids in whole]
