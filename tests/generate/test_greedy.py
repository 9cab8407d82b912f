"""Cached greedy decoding equals full recomputation, at every layout."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import generate_case, small_model, spawn

from nvlm.batch import MicroBatch
from nvlm.config import changed
from nvlm.config.schema import ParallelConfig
from nvlm.errors import DataError
from nvlm.generate.engine import Engine
from nvlm.generate.engine_layout import config_for_generation
from nvlm.parallel.groups import initialize, shut_down

# Large random weights: answers that vary from token to token.
WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]
SHARED = ["model.language.share_embeddings_and_output_weights=true"]


@pytest.fixture(scope="module", params=[[], SHARED], ids=["untied", "shared-embeddings"])
def checkpoint(request, tmp_path_factory):
    config = small_model.small_config(*WEIGHTS, *request.param)
    target = tmp_path_factory.mktemp("generate") / "checkpoint"
    yield generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()


@pytest.fixture(scope="module")
def engine(checkpoint):
    engine = Engine(checkpoint)
    engine.load()
    return engine


def test_a_layout_of_training_is_made_fit_for_generation():
    config = small_model.small_config(
        "model.language.num_layers=4",
        "parallel.tensor=2",
        "parallel.sequence=true",
        "parallel.vision=tile_parallel",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "train.global_batch_size=8",
    )
    assert config_for_generation(config, None, 8).parallel == ParallelConfig(tensor=2, pipeline=2)
    assert config_for_generation(config, None, 1).parallel == ParallelConfig()
    in_8_bits = changed(config, {"train.precision": "bf16", "train.fp8.recipe": "tensorwise"})
    assert config_for_generation(in_8_bits, None, 1).train.fp8.recipe == "none"


def recomputed(model, prompt_ids, tiles, image_id) -> tuple[list[int], float]:
    """The same answer from whole forward passes; and the smallest lead of a chosen token."""
    ids, smallest_lead = list(prompt_ids), float("inf")
    for _ in range(generate_case.MAX_NEW_TOKENS):
        tokens = torch.tensor([ids])
        micro_batch = MicroBatch(
            tokens=tokens,
            labels=tokens,
            position_ids=torch.arange(len(ids))[None],
            image_mask=tokens == image_id,
            cu_seqlens=torch.tensor([0, len(ids)], dtype=torch.int32),
            tiles=tiles,
        )
        with torch.no_grad():
            best, second = model(micro_batch, return_logits=True)[0, -1].topk(2)[0].tolist()
            ids.append(int(model(micro_batch, return_logits=True)[0, -1].argmax()))
        smallest_lead = min(smallest_lead, best - second)
    return ids[len(prompt_ids) :], smallest_lead


def test_cache_equals_recomputation(engine):
    image_id = engine.encoder.tokenizer.image_id
    different = set()
    for ids, tiles in generate_case.prompts(engine.config, image_id):
        expected, smallest_lead = recomputed(engine.model, ids, tiles, image_id)
        # Closer calls could fall either way by rounding alone.
        assert smallest_lead > 1e-5
        result = engine.generate(ids, tiles, generate_case.MAX_NEW_TOKENS, stop_ids=())
        assert result == expected
        different |= set(result)
    assert len(different) > 6, "a test of decoding needs answers that vary"


def test_stops_after_a_stop_token(engine):
    image_id = engine.encoder.tokenizer.image_id
    ids, tiles = generate_case.prompts(engine.config, image_id)[0]
    free = engine.generate(ids, tiles, 8, stop_ids=())
    stop = free[3]
    stopped = engine.generate(ids, tiles, 8, stop_ids={stop})
    assert stopped == free[: free.index(stop) + 1]


def test_refuses_a_prompt_that_does_not_fit(engine):
    image_id = engine.encoder.tokenizer.image_id
    ids, tiles = generate_case.prompts(engine.config, image_id)[0]
    with pytest.raises(DataError, match=r"32 <\|vision_pad\|> in the prompt for 1 tiles"):
        engine.generate(ids, tiles[:1], 8, stop_ids=())
    limit = engine.config.model.language.max_position_embeddings
    with pytest.raises(DataError, match="max_position_embeddings"):
        engine.generate(ids, tiles, limit, stop_ids=())


@pytest.mark.parallel
@pytest.mark.parametrize(
    "checkpoint, tensor, pipeline",
    # Pipeline stages each have a copy of a shared matrix.
    [pytest.param([], 2, 1, id="tensor2"), pytest.param(SHARED, 1, 2, id="pipeline2-shared")],
    indirect=["checkpoint"],
)
def test_layouts_give_the_same_answers(checkpoint, engine, tensor, pipeline, tmp_path):
    image_id = engine.encoder.tokenizer.image_id
    expected = [
        engine.generate(ids, tiles, generate_case.MAX_NEW_TOKENS, stop_ids=())
        for ids, tiles in generate_case.prompts(engine.config, image_id)
    ]
    out = tmp_path / "answers"
    program = (generate_case.__file__, checkpoint, out, str(tensor), str(pipeline))
    spawn.run_program_or_fail(2, *program, log=tmp_path / "log")
    for rank in range(2):
        assert json.loads(out.with_name(f"answers.{rank}").read_text()) == expected
