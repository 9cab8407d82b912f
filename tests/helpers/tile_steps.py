"""Steps of the small model with `parallel.vision: tile_parallel`, at one layout after another.

As a script under torchrun, with the same processes for all layouts; each rank writes a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from helpers import beside_batches, layout_steps, small_model, variants
from helpers.layout_steps import FUSED, with_images, with_rows_beside, without_images, wrapped
from nvlm import checkpoint_shares
from nvlm.config import changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import initialize, shut_down

SHARED = ["parallel.vision=tile_parallel"]
FROZEN = ["stage.freeze=['vision_model.*']"]
# Heads that no tensor-parallel size divides: the encoder is whole everywhere.
FIVE_HEADS = [*variants.INTERNVIT_300M, *variants.NO_ZERO_HEADS, *FROZEN]
STEPS, RESUMED = "two steps", "second step from another placement's checkpoint"
GRADIENTS = [
    "with images", "without images", "300M of 5 heads, projector only", "bf16", *FUSED.values(),
]  # fmt: skip


def all_cases(
    overrides: list[str], save_to: Path | None = None, resume_from: Path | None = None
) -> dict:
    """Every result of a layout and placement on this process.

    Args:
        save_to: run folder for a checkpoint of the first of two optimizer steps. None: no steps.
        resume_from: such a folder; the second step is then also taken from there.
    """
    config = layout_steps.config_of(*overrides, *FROZEN)
    variant = layout_steps.config_of(
        *overrides, *FIVE_HEADS, "stage.freeze=['vision_model.*','language_model.*']"
    )
    half = layout_steps.config_of(*overrides, *FROZEN, "train.precision=bf16")
    parallel = initialize(config)
    results = {}
    chunks = _build(config, parallel)
    results["with images"] = _step(chunks, with_images(config), parallel)
    results["without images"] = _step(chunks, without_images(config), parallel)
    results["300M of 5 heads, projector only"] = _step(
        _build(variant, parallel), with_images(config), parallel
    )
    results["bf16"] = _step(_build(half, parallel), with_images(config), parallel)
    for fusion, name in FUSED.items():
        fused = beside_batches.config_of(fusion, *overrides, *FROZEN)
        results[name] = _step(_build(fused, parallel), with_rows_beside(fused), parallel)
    if save_to is None:
        return results
    saved = layout_steps.config_of(*overrides, *layout_steps.OPTIMIZER, *FROZEN)
    saved = changed(saved, {"run": RunSection(name="tiles", dir=str(save_to))})
    results[STEPS] = layout_steps.two_steps(saved, parallel, save=True)
    if resume_from:
        with noting_reads() as read:
            results[RESUMED] = layout_steps.second_step(saved, parallel, resume_from)
        results[RESUMED]["read"] = read
    return results


@contextmanager
def noting_reads() -> Iterator[list[tuple]]:
    """What this process reads of a checkpoint's weights: (key, place in the global tensor)."""
    read, original = [], checkpoint_shares.read_sharded

    def noting(checkpoint, entries):
        read.extend((t.key, t.global_offset) for t in entries["weights"].values())
        return original(checkpoint, entries)

    checkpoint_shares.read_sharded = noting
    try:
        yield read
    finally:
        checkpoint_shares.read_sharded = original


def _build(config, parallel) -> list:
    chunks = small_model.build_chunks(config, parallel)
    layout_steps.freeze(chunks, config, parallel)
    return wrapped(chunks)


def _step(chunks: list, micro_batches: list, parallel) -> dict:
    return layout_steps.losses_and_gradients(chunks, micro_batches, parallel)


def main() -> None:
    """Arguments: folder, layouts by name, and which of them checkpoint, each for the next one."""
    folder, layouts, checkpointing = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
    resume_from = folder / layout_steps.SINGLE
    for name, overrides in layouts.items():
        print(f"layout {name}", flush=True)
        if name in checkpointing:
            results = all_cases([*SHARED, *overrides], folder / name, resume_from)
            resume_from = folder / name
        else:
            results = all_cases([*SHARED, *overrides])
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
