"""The features of a step's tiles, before its schedule starts (`parallel.vision: tile_parallel`)."""

from __future__ import annotations

from dataclasses import replace

from nvlm.batch import StepBatch
from nvlm.model.nvlm_d import NVLMD
from nvlm.parallel.groups import Parallel
from nvlm.parallel.tiles import gather_features


def encode_shares(step: StepBatch, model: NVLMD, parallel: Parallel) -> StepBatch:
    """The same step with features in the place of tiles; every process of the replica calls this.

    Each encodes its share. Features are kept on the first stage as long as the step takes: on each
    of its processes the step's tiles x tokens of a tile x 4 x the encoder's width numbers.

    Args:
        model: this process's first (or only) part of the model.
    """
    share = step.tile_share
    if share is None:
        return step
    micro_batches, num_tiles = step.micro_batches, sum(share.num_tiles)
    if num_tiles:
        features = gather_features(model.visual.encode(share.tiles), share.sizes, parallel)
        if features is not None:
            micro_batches = [
                replace(micro_batch, features=part)
                for micro_batch, part in zip(
                    micro_batches, features.split(share.num_tiles), strict=True
                )
            ]
    return replace(step, micro_batches=micro_batches, tile_share=None)
