"""Steps of the small model with each switch of its decoder (docs/switches.md), at some layouts.

As a script under torchrun: folder, layouts by name; each rank writes its results to a file. With
weights of image tokens' own each layout goes on with the checkpoint of the one before it, the first
with one process's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from helpers import beside_batches, layout_steps, small_model, stacked_batches, variants
from nvlm.batch import Gated, MicroBatch
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import initialize, shut_down
from nvlm.train.freezing import freeze

VOCABULARY = small_model.small_config().model.language.vocab_size
SWITCHES = {
    "visual attention": ["model.visual_attention=bidirectional"],
    "own norms, keys, values": ["model.language.visual_weights=norms_keys_values"],
    "features of two layers": ["model.vision.feature_layers=[-2, -1]"],
    # Behind two decoder layers, of four: where a stage or chunk has one, behind that.
    "deepstack": ["model.deepstack=levels", "model.vision.feature_layers=[-2, -1]"],
    "all weights own": ["model.language.visual_weights=all", *variants.QWEN3],
    "soft tags": ["stage.tile_tags=soft", "stage.num_soft_tag_tokens=2"],
    # Behind two layers, which the first chunk of two stages with two has of eight.
    "stacked tiles": [
        "model.deepstack=tiles",
        "model.language.num_layers=8",
        "stage.max_num_tiles=2",
    ],
    # Layers 1 and 3 of four read each another encoder layer: so do the stages of a pipeline.
    "levels in turn": [
        *beside_batches.SMALL["cross_attention"],
        "model.cross_attention.levels=in_turn",
        "model.vision.feature_layers=[-2, -1]",
    ],
    "alignment": ["stage.alignment={levels_from: gate, num_levels: 4}"],
}
# Layouts with a frozen encoder, whose steps are others than those of one that trains.
FROZEN = {
    "TP2 x DP2, shared tiles": [
        "parallel.tensor=2",
        "parallel.vision=tile_parallel",
        "stage.freeze=['vision_model.*']",
    ],
}
# Whose checkpoints have weights that no other model has.
SAVED = ["own norms, keys, values", "all weights own"]


def config_of(switch: str, *overrides: str) -> RunConfig:
    return layout_steps.config_of(*SWITCHES[switch], "stage.freeze=[]", *overrides)


def micro_batches(config: RunConfig) -> list[MicroBatch]:
    """With images and without: with two data ranks, the second one has none at all."""
    if config.model.fusion != "decoder_only":
        return layout_steps.with_rows_beside(config)
    if config.model.stacks_tiles:
        return stacked_batches.with_images(config)
    found = layout_steps.with_images(config)
    if config.stage.mixes_levels:
        return [with_mixed_level(batch) for batch in found]
    return [with_soft_tags(batch) for batch in found] if config.stage.has_soft_tags else found


def with_soft_tags(batch: MicroBatch) -> MicroBatch:
    """Of the first tile before the images, and of the thumbnail and the third among the text."""
    if not batch.num_tiles:
        return batch
    tokens = batch.tokens.clone()
    for place, number in ((0, 1), (-4, 0), (-9, 3)):
        first = VOCABULARY + 2 * number
        tokens[0, [place, place + 1]] = torch.tensor([first, first + 1])
    return replace(batch, tokens=tokens)


def with_mixed_level(batch: MicroBatch) -> MicroBatch:
    """The first document begins with the fourth level's vector, and a gate adds to it by its last
    tile and some of its text."""
    if not batch.num_tiles:
        return batch
    tokens = batch.tokens.clone()
    tokens[0, 0] = VOCABULARY + 3
    of_tokens = torch.full((tokens.shape[1],), -1)
    of_tokens[1 : batch.document_starts[1] - 5] = 0
    of_tokens[batch.image_positions] = -1
    of_tiles = torch.tensor([-1] * (batch.num_tiles - 1) + [0])
    return replace(batch, tokens=tokens, gated=Gated(torch.tensor([0]), of_tokens, of_tiles))


class StepsWithImages(layout_steps.TwoSteps):
    """Images in both, so that image tokens' own weights move in both."""

    batches = (layout_steps.with_images, layout_steps.with_images)


def saved_config(switch: str, run: Path, *overrides: str) -> RunConfig:
    config = config_of(switch, *layout_steps.OPTIMIZER, *overrides)
    return changed(config, {"run": RunSection(name="switch", dir=str(run / switch))})


def all_cases(overrides: list[str]) -> dict:
    """Switch -> losses and gradients of this process."""
    results = {}
    for switch in SWITCHES:
        config = config_of(switch, *overrides)
        parallel = initialize(config)
        models = small_model.build_chunks(config, parallel)
        freeze(models, config, parallel)
        chunks = layout_steps.wrapped(models)
        results[switch] = layout_steps.losses_and_gradients(chunks, micro_batches(config), parallel)
    return results


def main() -> None:
    folder, layouts = Path(sys.argv[1]), json.loads(sys.argv[2])
    resume_from = folder / layout_steps.SINGLE
    for name, overrides in layouts.items():
        results = all_cases(overrides)
        for switch in SAVED if name not in FROZEN else []:
            config = saved_config(switch, folder / name, *overrides)
            parallel = initialize(config)
            results[switch, layout_steps.STEPS] = layout_steps.two_steps(
                config, parallel, True, StepsWithImages
            )
            results[switch, layout_steps.RESUMED] = layout_steps.second_step(
                config, parallel, resume_from / switch, StepsWithImages
            )
        if name not in FROZEN:
            resume_from = folder / name
        torch.save(results, folder / f"{name} rank{torch.distributed.get_rank()}.pt")
    shut_down()


if __name__ == "__main__":
    main()
