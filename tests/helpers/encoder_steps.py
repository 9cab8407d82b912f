"""Steps of the small model with other encoders than an InternViT alone.

As a script under torchrun, with the same processes for all layouts; each rank writes a file.
"""

from __future__ import annotations

from pathlib import Path

from helpers import layout_steps, small_model
from helpers.encoders import CLIP, DINOV2, SIDE_BY_SIDE
from nvlm.config import changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import initialize

FROZEN = "stage.freeze=['vision_model.*']"
BESIDE = "InternViT beside SigLIP, both train"
TRAINED, FROZEN_CLIP = "DINOv2 that trains", "CLIP, frozen"
SHARED = "InternViT beside SigLIP, tile_parallel"
CASES = {
    TRAINED: [DINOV2, "stage.freeze=[]"],
    BESIDE: [SIDE_BY_SIDE, "stage.freeze=[]"],
    FROZEN_CLIP: [CLIP, FROZEN],
    SHARED: [SIDE_BY_SIDE, FROZEN, "parallel.vision=tile_parallel"],
}
# Layouts that go on from the checkpoint of the one before them, the first from one process's.
CHECKPOINTING = ["TP2", "PP2"]


def results_of(
    layout: list[str], save_to: Path | None = None, resume_from: Path | None = None
) -> dict[str, dict]:
    """Case -> losses and gradients of this process, of micro-batches with images and without.

    Args:
        save_to: run folder for a checkpoint of the first of two steps with encoders side by side.
        resume_from: such a folder, from which the second step is taken again.
    """
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
    if save_to is None:
        return found
    config = small_model.small_config(*layout, SIDE_BY_SIDE, *layout_steps.OPTIMIZER)
    config = changed(config, {"run": RunSection(name="layout", dir=str(save_to))})
    parallel = initialize(config)
    found[layout_steps.STEPS] = layout_steps.two_steps(config, parallel, save=True)
    if resume_from is not None:
        found[layout_steps.RESUMED] = layout_steps.second_step(config, parallel, resume_from)
    return found


if __name__ == "__main__":
    layout_steps.go_through_layouts(results_of, CHECKPOINTING)
