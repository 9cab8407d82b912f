"""Steps of the small model with encoders of which every tensor-parallel rank has all.

As a script under torchrun, with the same processes for all layouts; each rank writes a file.
"""

from __future__ import annotations

from helpers import layout_steps, small_model
from helpers.encoders import CLIP, DINOV2
from nvlm.parallel.groups import initialize

FROZEN = "stage.freeze=['vision_model.*']"
TRAINED, FROZEN_CLIP, SHARED = "DINOv2 that trains", "CLIP, frozen", "CLIP, tile_parallel"
CASES = {
    TRAINED: [DINOV2, "stage.freeze=[]"],
    FROZEN_CLIP: [CLIP, FROZEN],
    SHARED: [CLIP, FROZEN, "parallel.vision=tile_parallel"],
}


def results_of(layout: list[str]) -> dict[str, dict]:
    """Case -> losses and gradients of this process, of micro-batches with images and without."""
    found = {}
    for name, overrides in CASES.items():
        config = small_model.small_config(*layout, *overrides)
        parallel = initialize(config)
        chunks = small_model.build_chunks(config, parallel)
        layout_steps.freeze(chunks, config, parallel)
        chunks = layout_steps.wrapped(chunks)
        found[name] = layout_steps.losses_and_gradients(
            chunks, layout_steps.with_images(config), parallel
        )
    return found


if __name__ == "__main__":
    layout_steps.go_through_layouts(lambda layout, *_: results_of(layout), checkpointing=[])
