"""What is recomputed in the backward pass, and whether the encoder has one."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from nvlm.config.adapters import LINEARS
from nvlm.config.encoders.internvit import InternViTConfig
from nvlm.config.schema import RunConfig


def recompute_problems(config: RunConfig) -> Iterator[str]:
    parallel, vision = config.parallel, config.model.vision
    recomputed = [part for part in vision.parts.values() if isinstance(part, InternViTConfig)]
    if not recomputed and config.train.recompute.vision.granularity != "none":
        yield (
            f"train.recompute.vision.granularity {config.train.recompute.vision.granularity} is for"
            f" model.vision.kind internvit, which is {vision.kind}: set it to none"
        )
    layers_of_stage = {
        "vision": min(part.num_computed_layers for part in recomputed or vision.parts.values()),
        "language": _most_layers(config),
    }
    for part, num_layers in layers_of_stage.items():
        wanted = getattr(config.train.recompute, part)
        key = f"train.recompute.{part}.num_layers"
        if wanted.num_layers is None:
            continue
        if wanted.granularity != "full":
            yield (
                f"{key} {wanted.num_layers} needs train.recompute.{part}.granularity full, which "
                f"is {wanted.granularity}"
            )
        elif wanted.num_layers > num_layers:
            yield (
                f"{key} {wanted.num_layers} is more than the {num_layers} {part} layers of a "
                "pipeline stage"
            )
        elif part == "language" and wanted.num_layers % parallel.virtual_pipeline:
            yield (
                f"{key} {wanted.num_layers} is not a multiple of parallel.virtual_pipeline "
                f"{parallel.virtual_pipeline}: each chunk of a stage recomputes as many layers"
            )
    freezing = freezing_vision(config)
    if freezing and config.train.recompute.vision.granularity != "none":
        yield (
            f"train.recompute.vision.granularity {config.train.recompute.vision.granularity} has "
            f"nothing to recompute: stage.freeze {freezing!r} freezes the vision model, which "
            "then keeps no activations; set it to none"
        )


def freezing_vision(config: RunConfig) -> str | None:
    """The pattern of `stage.freeze` that by itself freezes all of the vision model.

    None also where the vision model has adapters, which train. Exceptions that do not name it may
    still let some of it train: nvlm/train/patterns.py.
    """
    # Those of plain torch have no layers that can be adapted.
    names = [
        ".".join(filter(None, ("vision_model", prefix, "decoder.layers", str(n), m, "weight")))
        for prefix, part in config.model.vision.parts.items()
        if isinstance(part, InternViTConfig)
        for n in range(part.num_layers)
        for m in LINEARS
    ]
    if any(fnmatchcase(name, pattern) for pattern in config.stage.adapters for name in names):
        return None
    freezing = None
    for pattern in config.stage.freeze:
        if pattern.startswith("!vision_model."):
            freezing = None
        # What matches the beginning of a name, and then anything, matches every such name.
        elif pattern.endswith("*") and fnmatchcase("vision_model.", pattern.removeprefix("!")):
            freezing = None if pattern.startswith("!") else freezing or pattern
    return freezing


def _most_layers(config: RunConfig) -> int:
    """Of the decoder, that a pipeline stage may have; where costs decide, all of them."""
    layout, num_layers = config.parallel.layout, config.model.language.num_layers
    if layout == "even":
        return num_layers // config.parallel.pipeline
    if layout == "auto":
        return num_layers
    return max(row if isinstance(row, int) else sum(row) for row in layout)
