"""Steps of the small model with each switch of its decoder (docs/switches.md), at some layouts.

As a script under torchrun: folder, layouts by name; each rank writes its results to a file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from helpers import layout_steps, small_model, variants
from nvlm.batch import MicroBatch
from nvlm.config import RunConfig
from nvlm.parallel.groups import initialize, shut_down

SWITCHES = {
    "visual attention": ["model.visual_attention=bidirectional"],
    "own norms, keys, values": ["model.language.visual_weights=norms_keys_values"],
    "features of two layers": ["model.vision.feature_layers=[-2, -1]"],
    "all weights own": ["model.language.visual_weights=all", *variants.QWEN3],
}


def config_of(switch: str, *overrides: str) -> RunConfig:
    return layout_steps.config_of(*SWITCHES[switch], "stage.freeze=[]", *overrides)


def micro_batches(config: RunConfig) -> list[MicroBatch]:
    """With images and without: with two data ranks, the second one has none at all."""
    return layout_steps.with_images(config)


def all_cases(overrides: list[str]) -> dict[str, dict]:
    """Switch -> losses and gradients of this process."""
    results = {}
    for switch in SWITCHES:
        config = config_of(switch, *overrides)
        parallel = initialize(config)
        chunks = layout_steps.wrapped(small_model.build_chunks(config, parallel))
        results[switch] = layout_steps.losses_and_gradients(chunks, micro_batches(config), parallel)
    return results


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, overrides in layouts.items():
        results = all_cases(overrides)
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
