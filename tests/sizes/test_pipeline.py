"""Which stage holds what, against the layers and counts that one writes down by hand."""

from __future__ import annotations

import pytest

from nvlm.config import RunConfig, load_config
from nvlm.sizes.parameters import parameters_by_name
from nvlm.sizes.pipeline import chunk_layers, chunk_parameters, is_copy, stage_parameters

TINY = "configs/run/tiny/sft.yaml"
EMBEDDING = "language_model.embedding.word_embeddings.weight"


def make_config(pipeline: int, virtual: int, *overrides: str, layers: object = "even") -> RunConfig:
    layout = [f"parallel.pipeline={pipeline}", f"parallel.virtual_pipeline={virtual}"]
    layout.append(f"parallel.layout={layers}")
    return load_config(TINY, ["model.language.num_layers=8", *layout, *overrides])


@pytest.mark.parametrize(
    "pipeline, virtual, layers, expected",
    [
        (1, 1, "even", [[[0, 1, 2, 3, 4, 5, 6, 7]]]),
        (4, 1, "even", [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]),
        (2, 2, "even", [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]),
        (2, 4, "even", [[[0], [2], [4], [6]], [[1], [3], [5], [7]]]),
        (1, 1, [8], [[[0, 1, 2, 3, 4, 5, 6, 7]]]),
        (3, 1, [0, 5, 3], [[[]], [[0, 1, 2, 3, 4]], [[5, 6, 7]]]),
        (2, 2, [[1, 3], [2, 2]], [[[0], [3, 4, 5]], [[1, 2], [6, 7]]]),
        (2, 2, [[0, 3], [4, 1]], [[[], [4, 5, 6]], [[0, 1, 2, 3], [7]]]),
    ],
)
def test_layers_are_dealt_out_chunk_by_chunk(
    pipeline: int, virtual: int, layers: object, expected: list
):
    config = make_config(pipeline, virtual, layers=layers)
    assert [chunk_layers(config, stage) for stage in range(pipeline)] == expected
    stages = [stage_parameters(config, stage) for stage in range(pipeline)]
    for stage, chunks in enumerate(expected):
        layers = {layer for chunk in chunks for layer in chunk}
        for layer in range(8):
            name = f"language_model.decoder.layers.{layer}.mlp.linear_fc1.weight"
            assert (name in stages[stage]) == (layer in layers)
    for name in (
        "language_model.decoder.final_layernorm.weight",
        "language_model.output_layer.weight",
    ):
        assert [name in held for held in stages] == [False] * (pipeline - 1) + [True]
    for name in parameters_by_name(config.model):
        if name.startswith(("vision_model.", "vision_projection.")) or name == EMBEDDING:
            assert [name in held for held in stages] == [True] + [False] * (pipeline - 1)


def test_with_shared_tiles_every_process_has_the_encoder_whole():
    config = make_config(2, 2, "parallel.tensor=2", "parallel.vision=tile_parallel")
    for stage in range(2):
        held = stage_parameters(config, stage)
        of_vision = {name: row for name, row in held.items() if name.startswith("vision_model.")}
        assert of_vision.keys() == {
            name for name in parameters_by_name(config.model) if name.startswith("vision_model.")
        }
        assert all(row.local_shape(2) == row.shape for row in of_vision.values())
        assert all(is_copy(row, stage) == (stage > 0) for row in of_vision.values())
        assert not any(
            name.startswith("vision_model.") for name in chunk_parameters(config, stage, 1)
        )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    "pipeline, virtual, layers",
    [
        (1, 1, "even"),
        (4, 1, "even"),
        (2, 2, "even"),
        (4, 1, [0, 3, 3, 2]),
        (2, 2, [[0, 3], [4, 1]]),
    ],
)
def test_stages_hold_the_model_between_them(
    pipeline: int, virtual: int, layers: object, shared: bool
):
    override = f"model.language.share_embeddings_and_output_weights={shared}"
    config = make_config(pipeline, virtual, override, layers=layers)
    whole = parameters_by_name(config.model)
    stages = [stage_parameters(config, stage) for stage in range(pipeline)]
    copies = {
        (stage, name)
        for stage, held in enumerate(stages)
        for name, row in held.items()
        if is_copy(row, stage)
    }
    assert copies == ({(pipeline - 1, EMBEDDING)} if shared and pipeline > 1 else set())
    assert sum(map(len, stages)) - len(copies) == len(whole)
    assert set().union(*stages) == whole.keys()
