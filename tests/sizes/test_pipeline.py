"""Which stage holds what, against the layers and counts that one writes down by hand."""

from __future__ import annotations

import math

import pytest

from nvlm.config import RunConfig, load_config
from nvlm.sizes.parameters import parameter_shapes
from nvlm.sizes.pipeline import stage_of, stage_shapes

TINY = "configs/run/tiny/sft.yaml"
EMBEDDING = "language_model.embedding.word_embeddings.weight"


def make_config(pipeline: int, virtual: int, *overrides: str) -> RunConfig:
    layout = [f"parallel.pipeline={pipeline}", f"parallel.virtual_pipeline={virtual}"]
    return load_config(TINY, ["model.language.num_layers=8", *layout, *overrides])


@pytest.mark.parametrize(
    "pipeline, virtual, expected",
    [
        (1, 1, [0, 0, 0, 0, 0, 0, 0, 0]),
        (4, 1, [0, 0, 1, 1, 2, 2, 3, 3]),
        (2, 2, [0, 0, 1, 1, 0, 0, 1, 1]),
        (2, 4, [0, 1, 0, 1, 0, 1, 0, 1]),
    ],
)
def test_layers_are_dealt_out_chunk_by_chunk(pipeline: int, virtual: int, expected: list[int]):
    config = make_config(pipeline, virtual)
    names = [f"language_model.decoder.layers.{layer}.mlp.linear_fc1.weight" for layer in range(8)]
    assert [stage_of(name, config) for name in names] == expected
    last = pipeline - 1
    assert stage_of("language_model.decoder.final_layernorm.weight", config) == last
    assert stage_of("language_model.output_layer.weight", config) == last
    for name, _ in parameter_shapes(config.model):
        if name.startswith(("vision_model.", "vision_projection.")) or name == EMBEDDING:
            assert stage_of(name, config) == 0, name


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("pipeline, virtual", [(1, 1), (4, 1), (2, 2)])
def test_stages_hold_the_model_between_them(pipeline: int, virtual: int, shared: bool):
    override = f"model.language.share_embeddings_and_output_weights={shared}"
    config = make_config(pipeline, virtual, override)
    whole = dict(parameter_shapes(config.model))
    stages = [stage_shapes(config, stage) for stage in range(pipeline)]
    total = sum(math.prod(shape) for stage in stages for shape in stage.values())
    copies = math.prod(whole[EMBEDDING]) if shared and pipeline > 1 else 0
    assert total - copies == sum(math.prod(shape) for shape in whole.values())
    assert set().union(*stages) == whole.keys()
    assert (EMBEDDING in stages[-1]) == (shared or pipeline == 1)
