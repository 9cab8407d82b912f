"""Decoders with a switch (docs/switches.md) answer with a cache as they do by whole passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import beside_answers, generate_case, layout_steps
from helpers.switch_steps import SWITCHES

from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.text.encode import EncodedPrompt, EncodedSample
from nvlm.errors import DataError
from nvlm.generate.engine import Engine
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import initialize, shut_down

# Large random weights: answers that vary from token to token, and with the images.
WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]


@pytest.fixture(scope="module", params=SWITCHES)
def engine(request, tmp_path_factory):
    config = layout_steps.config_of(*SWITCHES[request.param], *WEIGHTS)
    target = tmp_path_factory.mktemp("switch") / "checkpoint"
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
        beside = prompt.beside and prompt.beside.followed_by(len(answer))
        alignment = prompt.alignment and prompt.alignment.followed_by(len(answer))
        sample = EncodedSample(
            tokens, np.zeros_like(tokens), image_mask, beside, alignment, prompt.grids
        )
        size = engine.config.model.vision.image_size
        row = [[PackedSample("", sample, prompt.tiles)]]
        has_beside = prompt.beside is not None
        batch = build_micro_batch(row, len(tokens), size, 0, has_beside=has_beside)
        with torch.no_grad():
            logits = engine.model(batch, return_logits=True)
        answer.append(int(logits[0, -1].argmax()))
    return answer


def test_answers_with_a_cache_are_those_by_recomputation(engine):
    prompts = beside_answers.prompts(engine)
    expected = [recomputed(engine, prompt) for prompt in prompts]
    assert len({token for answer in expected for token in answer}) > 10, "answers that vary"
    assert beside_answers.answers(engine) == expected


def test_a_share_of_the_cache_is_refused(engine):
    if engine.config.model.deepstack != "none":
        with pytest.raises(DataError, match=r"which visual tokens are merged .*deepstack"):
            Engine(engine.checkpoint, thrift=Thrift(visual_tokens=0.5))
    if not engine.config.model.sees_both_ways:
        return
    with pytest.raises(DataError, match="share of the cache to keep"):
        Engine(engine.checkpoint, thrift=Thrift(cache=0.5))
