"""Every process has questions of its own, and gets the answers that a single process gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import asked_by_all_case as case
from helpers import generate_case, small_model, spawn

from nvlm.generate.engine import Engine
from nvlm.parallel.groups import initialize, shut_down
from nvlm.plugins.asked_by_all import answer_share

# Large random weights: answers that vary from token to token.
WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    config = small_model.small_config(*WEIGHTS)
    target = tmp_path_factory.mktemp("asked-by-all") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    engine = Engine(target)
    engine.load()
    yield engine
    shut_down()


@pytest.fixture(scope="module")
def alone(engine) -> list[list]:
    """[text, number of tokens] of each question, asked one after another."""
    found = []
    for number, prompt in enumerate(case.prompts(engine)):
        most = case.sampling(number).max_new_tokens
        end = {engine.encoder.tokenizer.end_id}
        ids = engine.generate(prompt.tokens.tolist(), torch.from_numpy(prompt.tiles), most, end)
        found.append([engine.text_of(ids), len(ids)])
    assert len({text for text, _ in found}) == len(found)
    return found


def test_one_process(engine, alone):
    prompts = case.prompts(engine)
    share = [lambda n=n: (prompts[n], case.sampling(n)) for n in range(len(prompts))]
    assert [[a.text, a.num_tokens] for a in answer_share(engine, share)] == alone
    assert answer_share(engine, []) == []


def run(engine, tmp_path: Path, tensor: int, *more: str) -> list:
    out = tmp_path / "answers"
    program = (case.__file__, engine.checkpoint, out, str(tensor), *more)
    spawn.run_program_or_fail(4, *program, log=tmp_path / "log")
    return [json.loads(out.with_name(f"answers.{rank}").read_text()) for rank in range(4)]


@pytest.mark.parallel
def test_replicas_of_two_processes_with_shares_of_any_size(engine, alone, tmp_path):
    found = run(engine, tmp_path, 2)
    assert found == [[alone[n] for n in case.share_of(rank)] for rank in range(4)]


@pytest.mark.parallel
def test_a_question_that_cannot_be_asked_ends_its_replica(engine, alone, tmp_path):
    """Nobody waits for answers that do not come; the other replica has its own."""
    found = run(engine, tmp_path, 2, "failing")
    assert found[:2] == [case.FAILURE] * 2
    assert found[2:] == [[alone[n] for n in case.share_of(rank)] for rank in (2, 3)]
