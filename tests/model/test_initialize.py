"""Random initialisation: its statistics, its zero heads, and that it depends on the seed only."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model

from nvlm.checkpoint_shares import sharded_tensors
from nvlm.model.nvlm_d import build_model
from nvlm.model.parts import initialize
from nvlm.model.parts.initialize import initial_tensor, initialize_weights
from nvlm.rows import Normal, Parameter, Place


@pytest.fixture(scope="module")
def initialized(parallel):
    config = small_model.small_config()
    model = build_model(config, parallel)
    initialize_weights(model, config)
    return model


def test_statistics(initialized):
    config = small_model.small_config()
    parameters = dict(initialized.named_parameters())
    scaled = 1 / (2 * config.model.language.num_layers) ** 0.5
    layer = "language_model.decoder.layers.1."
    expected = {
        "vision_projection.mlp.linear_fc1.weight": 0.014,
        "vision_projection.mlp.linear_fc2.weight": 0.014,
        "language_model.embedding.word_embeddings.weight": config.model.language.init_std,
        "language_model.output_layer.weight": config.model.language.init_std,
        layer + "mlp.linear_fc1.weight": config.model.language.init_std,
        layer + "mlp.linear_fc2.weight": config.model.language.init_std * scaled,
        layer + "self_attention.linear_proj.weight": config.model.language.init_std * scaled,
        "vision_model.embeddings.patch_embedding.weight": config.model.vision.init_std,
    }
    for name, deviation in expected.items():
        assert float(parameters[name].std()) == pytest.approx(deviation, rel=0.03), name
        assert abs(float(parameters[name].mean())) < deviation / 20, name
    for name, parameter in parameters.items():
        if name.endswith("norm.weight") and "q_layernorm" not in name and "k_layernorm" not in name:
            assert (parameter == 1).all(), name
        elif name.endswith(".bias"):
            assert (parameter == 0).all(), name
        elif name.endswith("_bda.scale"):
            assert torch.allclose(parameter, torch.tensor(config.model.vision.layer_scale_init))


def test_zero_heads(initialized):
    vision = small_model.small_config().model.vision
    attention = initialized.vision_model.decoder.layers[0].self_attention
    tensors = [
        attention.linear_qkv.weight,
        attention.linear_proj.weight.t(),
        attention.q_layernorm.weight,
        attention.k_layernorm.weight,
    ]
    for tensor in tensors:
        heads = tensor.unflatten(0, (vision.num_stored_attention_heads, -1))
        assert (heads[: vision.num_attention_heads] != 0).all()
        assert (heads[vision.num_attention_heads :] == 0).all()


@pytest.mark.parametrize("block_size", [16, 100, 1000, 10**6])
@pytest.mark.parametrize(
    "shape", [(5,), (17,), (333, 7), (100, 48), (300, 33), (64, 3, 5), (129, 1)]
)
def test_blocks_are_what_one_draw_gives(shape, block_size, monkeypatch):
    monkeypatch.setattr(initialize, "BLOCK_SIZE", block_size)
    row = Parameter("w", shape, Normal(0.02))
    generator = initialize._generator(1, "w", Place(3))
    whole = torch.empty(shape).normal_(0, 0.02, generator=generator)
    assert torch.equal(initial_tensor(1, row, Place(3)), whole)


def test_layers_and_seeds_differ():
    row = Parameter("language_model.decoder.layers.mlp.linear_fc1.weight", (8, 8), Normal(0.01))
    first = initial_tensor(1234, row, Place(0))
    assert torch.equal(first, initial_tensor(1234, row, Place(0)))
    assert not torch.equal(first, initial_tensor(1234, row, Place(1)))
    assert not torch.equal(first, initial_tensor(1234, row, Place(0, 0)))
    assert not torch.equal(
        initial_tensor(1234, row, Place(0, 1)), initial_tensor(1234, row, Place(0, 0))
    )
    assert not torch.equal(first, initial_tensor(7, row, Place(0)))


def test_pattern_limits_what_is_filled(parallel):
    config = small_model.small_config()
    model = build_model(config, parallel)
    for shard in sharded_tensors(model.sharded_state_dict()):
        shard.data.data.fill_(5)
    initialize_weights(model, config, "vision_projection.*")
    for name, parameter in model.named_parameters():
        assert (parameter == 5).all() == (not name.startswith("vision_projection.")), name
