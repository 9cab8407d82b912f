"""A dense model as one with experts: the same values, the same answers, and an export of it."""

from __future__ import annotations

import pytest
import torch
from helpers import small_folders

from nvlm.batch import MicroBatch
from nvlm.checkpoint_io import read_config
from nvlm.config.experts import ExpertsConfig
from nvlm.convert import convert_from_hf, convert_to_hf
from nvlm.convert.blocks import Buffer
from nvlm.convert.hf_files.modeling_nvlm_d import NVLM_D_Model
from nvlm.convert.megatron.reader import CheckpointReader
from nvlm.convert.upcycle import upcycle
from nvlm.errors import ConfigError, ConvertError
from nvlm.generate.engine import Engine
from nvlm.generate.greedy import generate_greedy
from nvlm.rows import Place
from nvlm.sizes.parameters import parameters_by_key

EXPERTS = ExpertsConfig(num_experts=3, every_nth_layer=2)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    config = small_folders.convert_config()
    small_folders.make_vision_folder(folder / "vision", config)
    small_folders.make_language_folder(folder / "language", config)
    return convert_from_hf(folder / "vision", folder / "language", config, folder / "checkpoint")


@pytest.fixture(scope="module")
def sparse(dense, tmp_path_factory):
    return upcycle(dense, tmp_path_factory.mktemp("sparse") / "checkpoint", EXPERTS)


def text() -> MicroBatch:
    tokens = torch.randint(0, 500, (1, 40), generator=torch.Generator().manual_seed(0))
    return MicroBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, -100),
        position_ids=torch.arange(40)[None],
        image_mask=torch.zeros_like(tokens, dtype=torch.bool),
        cu_seqlens=torch.tensor([0, 40], dtype=torch.int32),
        tiles=torch.empty(0, 3, 56, 56, dtype=torch.uint8),
    )


@torch.no_grad()
def logits_of(checkpoint) -> torch.Tensor:
    engine = Engine(checkpoint)
    engine.load()
    found = engine.model(text(), return_logits=True)
    engine.close()
    return found


def test_logits_are_the_dense_models_before_it_trains(dense, sparse, measure):
    error = float((logits_of(sparse) - logits_of(dense)).abs().max())
    measure("logits of an upcycled model, largest difference", "the dense model", error, 1e-5)


def test_experts_are_copies_and_routers_a_function_of_the_seed(dense, sparse, tmp_path):
    before, after = CheckpointReader(dense), CheckpointReader(sparse)
    decoder = "language_model.decoder.layers"
    fc1, experts = f"{decoder}.mlp.linear_fc1.weight", f"{decoder}.mlp.experts.experts.linear_fc1"
    assert after.shape(fc1) == (2, *before.shape(fc1)[1:])
    assert after.shape(f"{experts}.weight") == (2, 3, *before.shape(fc1)[1:])
    again = upcycle(dense, tmp_path / "again", EXPERTS)
    other = upcycle(dense, tmp_path / "other", EXPERTS, seed=7)

    def router(checkpoint):
        row = parameters_by_key(read_config(checkpoint).model)[f"{decoder}.mlp.router.weight"]
        return CheckpointReader(checkpoint).read(row, Place(3), 0, 3, Buffer())

    assert torch.equal(router(sparse), router(again))
    assert not torch.equal(router(sparse), router(other))
    assert router(sparse).std() > 0


def test_export_is_a_qwen2_moe_that_computes_the_same(sparse, tmp_path, measure):
    export = convert_to_hf(sparse, tmp_path / "export")
    published = NVLM_D_Model.from_pretrained(export).eval()
    assert published.config.llm_config.model_type == "qwen2_moe"
    with torch.no_grad():
        found = published(pixel_values=None, input_ids=text().tokens).logits
    error = float((found - logits_of(sparse)).abs().max())
    measure("logits of an export with experts", "our Megatron model", error, 1e-4)
    error = float((logits_of(export) - logits_of(sparse)).abs().max())
    measure("logits of an export read again", "the checkpoint", error, 0)


def test_answers_with_the_cache_are_those_of_whole_passes(sparse, tmp_path):
    published = NVLM_D_Model.from_pretrained(convert_to_hf(sparse, tmp_path / "export")).eval()
    prompt = text().tokens[0].tolist()
    engine = Engine(sparse)
    engine.load()
    image_id = published.config.img_context_token_id
    answer = generate_greedy(engine.model, engine.config, image_id, prompt, text().tiles, 8, [])
    engine.close()
    expected = list(prompt)
    with torch.no_grad():
        for _ in range(8):
            logits = published(pixel_values=None, input_ids=torch.tensor([expected])).logits
            expected.append(int(logits[0, -1].argmax()))
    assert answer == expected[len(prompt) :]


def test_what_cannot_be_is_refused(dense, sparse, tmp_path):
    with pytest.raises(ConvertError, match="has 3 experts already"):
        upcycle(sparse, tmp_path / "out", EXPERTS)
    with pytest.raises(ConvertError, match="cannot be copies of an MLP"):
        upcycle(dense, tmp_path / "out", EXPERTS.model_copy(update={"ffn_hidden_size": 7}))
    with pytest.raises(ConfigError, match="every_nth_layer 9 is more than"):
        upcycle(dense, tmp_path / "out", EXPERTS.model_copy(update={"every_nth_layer": 9}))
    assert not (tmp_path / "out").exists()
