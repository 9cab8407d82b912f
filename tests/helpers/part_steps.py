"""Steps of the small model with parts of which every tensor-parallel rank has all.

As a script under torchrun, with the same processes for all layouts; each rank writes a file.
"""

from __future__ import annotations

from helpers import layout_steps, small_model
from helpers.connectors import CONNECTORS
from nvlm.parallel.groups import initialize

# MLPs are Megatron-core's, whose layers are split.
CASES = {name: [*overrides] for name, overrides in CONNECTORS.items() if "mlp" not in name}


def results_of(layout: list[str]) -> dict[str, dict]:
    """Case -> losses and gradients of this process, of micro-batches with images and without."""
    found = {}
    for name, overrides in CASES.items():
        config = small_model.small_config(*layout, *overrides)
        parallel = initialize(config)
        chunks = layout_steps.wrapped(small_model.build_chunks(config, parallel))
        micro_batches = [
            small_model.batch(config, 1, [100, 20], num_tiles=2),
            small_model.batch(config, 2, [50, 70], num_tiles=0),
            small_model.batch(config, 3, [90, 8, 22], num_tiles=3),
        ]
        found[name] = layout_steps.losses_and_gradients(chunks, micro_batches, parallel)
    return found


if __name__ == "__main__":
    layout_steps.go_through_layouts(lambda layout, *_: results_of(layout), checkpointing=[])
