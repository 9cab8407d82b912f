"""What decides the order of samples, as readable settings: saved with a position, compared on
resume."""

from __future__ import annotations

from dataclasses import astuple

from nvlm.config import RunConfig
from nvlm.data.index.source_index import SourceIndex
from nvlm.data.order.blend import order_settings
from nvlm.errors import DataError
from nvlm.sizes.flops import step_flops

# Raise it whenever the same settings give another order.
ORDER_VERSION = 3
# Of a source's hash: blends have a hundred sources, and the position stays below 10 KB.
_NUM_HASH_CHARACTERS = 10


def data_fingerprint(config: RunConfig, indexes: list[SourceIndex]) -> dict:
    """Everything that decides the order. JSON values only."""
    stage, vision = config.stage, config.model.vision
    return {
        "order_version": ORDER_VERSION,
        "train.seed": config.train.seed,
        "train.global_batch_size": config.train.global_batch_size,
        "data.split": config.data.split,
        "data.blend": order_settings(config.data),
        "data.packing_window": config.data.packing_window,
        "stage.sequence_length": stage.sequence_length,
        "stage.max_num_tiles": stage.max_num_tiles,
        "stage.use_thumbnail": stage.use_thumbnail,
        "stage.packing": stage.packing,
        # Earlier runs stretch, and say nothing of it.
        **({} if stage.tiling == "stretch" else {"stage.tiling": stage.tiling}),
        "stage.max_tiles_per_sequence": stage.max_tiles_per_sequence,
        "model.vision.image_size": vision.image_size,
        "model.vision.patch_size": next(iter(vision.parts.values())).patch_size,
        "model.image_token": config.model.image_token,
        "cost_weights": list(astuple(step_flops(config))),
        **indexes[0].template,
        "sources": {index.source: index.content_hash[:_NUM_HASH_CHARACTERS] for index in indexes},
    }


def check_same(current: dict, saved: dict) -> None:
    """Raise `DataError` showing the difference, if two fingerprints are not the same."""
    lines = differences(saved, current)
    if lines:
        raise DataError(
            "the data position of the checkpoint belongs to another order of samples: "
            + "; ".join(lines)
            + ". Put these back, start a new run in another run.dir, or go on with the new data "
            "(`nvlm train ... --allow-data-change`)"
        )


def differences(saved: dict, current: dict) -> list[str]:
    lines = []
    for key in sorted({*saved, *current} - {"sources"}):
        old, new = saved.get(key), current.get(key)
        if old == new:
            continue
        if key == "tokenizer":
            lines.append("the tokenizer is another one")
        elif key == "order_version":
            lines.append("this version of nvlm orders samples in another way")
        elif key == "cost_weights":
            lines.append("the model's sizes or stage.freeze, by which packs are balanced, differ")
        else:
            lines.append(f"{key} was {old!r}, is {new!r}")
    for source in sorted({*saved["sources"], *current["sources"]}):
        old, new = saved["sources"].get(source), current["sources"].get(source)
        if old != new:
            what = "is new" if old is None else "is gone" if new is None else "has other samples"
            lines.append(f"source {source} {what}")
    return lines
