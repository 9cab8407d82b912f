"""Which pipeline stage holds what. Imports no torch.

The vision encoder, the projector and the embedding are on the first stage, the final norm and the
output layer on the last. Layers are dealt out in equal runs: one per stage or, with virtual
stages, one per chunk in turn. 8 layers on 2 stages of 2 chunks: stage 0 has layers 0, 1, 4 and 5.
"""

from __future__ import annotations

import re

from nvlm.config.schema import RunConfig
from nvlm.sizes.parameters import Shape, parameter_shapes

_EMBEDDING = "language_model.embedding.word_embeddings.weight"
_LAYER = re.compile(r"language_model\.decoder\.layers\.(\d+)\.")
_AFTER_THE_LAYERS = ("language_model.decoder.final_layernorm.", "language_model.output_layer.")


def stage_of(name: str, config: RunConfig) -> int:
    """The pipeline stage of the parameter `name`, as `nvlm.sizes.parameters` names parameters."""
    parallel = config.parallel
    if layer := _LAYER.match(name):
        num_chunks = parallel.pipeline * parallel.virtual_pipeline
        layers_per_chunk = config.model.language.num_layers // num_chunks
        return int(layer[1]) // layers_per_chunk % parallel.pipeline
    return parallel.pipeline - 1 if name.startswith(_AFTER_THE_LAYERS) else 0


def stage_shapes(config: RunConfig, stage: int) -> dict[str, Shape]:
    """Name and whole shape of every parameter of pipeline stage `stage`.

    A shared embedding is on the first stage and, where that is another one, a second time on the
    last: the copy has the same name.
    """
    shapes = dict(parameter_shapes(config.model))
    last = config.parallel.pipeline - 1
    is_shared = config.model.language.share_embeddings_and_output_weights
    return {
        name: shape
        for name, shape in shapes.items()
        if stage_of(name, config) == stage or (is_shared and stage == last and name == _EMBEDDING)
    }
