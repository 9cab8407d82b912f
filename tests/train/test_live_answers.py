"""Answers of a model that trains, many at once, are those of one after another with a cache."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import generate_case, layout_steps, small_model

from nvlm.data.text.encode import EncodedPrompt
from nvlm.generate.greedy import generate_greedy
from nvlm.train import live_answers
from nvlm.train.live_answers import Prompt, answer_live, question_batches
from nvlm.train.optim import bare
from nvlm.train.validation import looking_at

IMAGE_ID = 1000
PAD_ID = 0
MOST = 12


@pytest.fixture(scope="module")
def training(parallel):
    """A sequence holds two of the shorter prompts; the last one is longer than a sequence."""
    config = small_model.small_config(
        "model.language.init_std=0.2",
        "stage.freeze=[]",
        "stage.sequence_length=80",
        "stage.max_num_tiles=1",
        "stage.use_thumbnail=false",
    )
    return layout_steps.TwoSteps(config, parallel).training


@pytest.fixture(scope="module")
def prompts(training) -> list[Prompt]:
    found = []
    for ids, tiles in generate_case.prompts(training.config, IMAGE_ID) * 2:
        tokens = np.array(ids)
        if len(found) == 5:
            tokens = np.concatenate([tokens, np.arange(60)])
        encoded = EncodedPrompt(tokens, tokens == IMAGE_ID, tiles.numpy())
        found.append(Prompt(str(len(found)), encoded))
    return found


def with_cache(training, prompt: Prompt, stop_ids: set[int]) -> list[int]:
    import torch

    (model,) = bare(training.chunks)
    encoded = prompt.encoded
    ids, tiles = encoded.tokens.tolist(), torch.from_numpy(encoded.tiles)
    return generate_greedy(model, training.config, IMAGE_ID, ids, tiles, MOST, stop_ids)


@pytest.mark.parametrize("most_tiles", [64, 2])
def test_answers_are_those_with_a_cache(most_tiles, training, prompts, monkeypatch):
    monkeypatch.setattr(live_answers, "_MAX_TILES", most_tiles)
    steps = list(question_batches(training.config, prompts, MOST, PAD_ID))
    assert len(steps) == (1 if most_tiles == 64 else 4)
    lengths = {row.tokens.shape[1] for step in steps for row in step.micro_batches}
    assert lengths == ({160} if most_tiles == 64 else {80, 160})
    with looking_at(training):
        free = [with_cache(training, prompt, set()) for prompt in prompts]
        assert len({token for answer in free for token in answer}) > 12
        # One that the first answer comes to early, others late or never.
        stop_id = free[0][2]
        expected = [with_cache(training, prompt, {stop_id}) for prompt in prompts]
        assert len({len(answer) for answer in expected}) > 1
        assert answer_live(training, iter(prompts), MOST, PAD_ID, {stop_id}) == expected
    assert all(module.training for chunk in training.chunks for module in chunk.modules())


def test_without_questions_nothing_runs(training):
    with looking_at(training):
        assert answer_live(training, iter([]), MOST, PAD_ID, 1) == []
