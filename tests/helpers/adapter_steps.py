"""Steps of a small model with adapters, as `layout_steps` has them of one without.

As a script under torchrun it goes through several layouts with the same processes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from helpers import layout_steps, small_model
from nvlm.batch import MicroBatch
from nvlm.config import RunConfig, changed
from nvlm.config.schema import RunSection
from nvlm.parallel.groups import Parallel, initialize
from nvlm.sizes.adapters import quantized

# Ranks differ, and so do layers: the second of the decoder has another, the third none.
LORA = (
    "stage.adapters={"
    "vision_model.decoder.layers.*.linear_*.weight: {rank: 4, alpha: 12},"
    "vision_projection.mlp.linear_*.weight: {rank: 3, alpha: 3},"
    "'language_model.decoder.layers.[03].*.linear_*.weight': {rank: 4},"
    "language_model.decoder.layers.1.*.linear_*.weight: {rank: 6, alpha: 9}}"
)
# Rows of zero heads have no direction.
DORA = (
    "stage.adapters={"
    "vision_model.decoder.layers.*.mlp.linear_*.weight: {rank: 4, dora: true},"
    "vision_model.*.linear_proj.weight: {rank: 4, dora: true},"
    "vision_projection.mlp.linear_*.weight: {rank: 3, dora: true},"
    "language_model.*.linear_*.weight: {rank: 4, alpha: 6, dora: true}}"
)
# Whose rows tensor-parallel ranks share in whole blocks.
IN_4_BITS = (
    "model.layer_implementation=local",
    "stage.freeze=[vision_projection.*]",
    "stage.adapters={"
    "'language_model.*.linear_[fq]*.weight': {rank: 4, quantization: nf4},"
    " 'vision_model.*.linear_*.weight': {rank: 4}}",
)
NF4 = "in 4 bits"
STEPS, RESUMED = "two steps", "resumed"
OPTIMIZER = [
    "train.optimizer.epsilon=1e-4",
    "train.schedule.warmup_steps=0",
    "train.optimizer.lr_multipliers={'*.lora_b': 2}",
]


def config_of(adapters: str, *overrides: str) -> RunConfig:
    return layout_steps.config_of(adapters, *overrides)


def gradients(
    config: RunConfig,
    parallel: Parallel,
    batches: Callable[[RunConfig], list[MicroBatch]] = layout_steps.with_images,
) -> dict:
    """`layout_steps.losses_and_gradients` with adapters that are not zero."""
    from nvlm.model.parts.nf4 import pack_matrices, round_matrices

    chunks = small_model.build_chunks(config, parallel)
    layout_steps.freeze(chunks, config, parallel)
    for chunk in chunks if quantized(config) else []:
        round_matrices(chunk, config)
        pack_matrices(chunk, config)
    return layout_steps.losses_and_gradients(
        layout_steps.wrapped(chunks), batches(config), parallel
    )


def all_cases(
    overrides: list[str], save_to: Path | None = None, resume_from: Path | None = None
) -> dict:
    """As `layout_steps.all_cases`."""
    lora, dora = config_of(LORA, *overrides), config_of(DORA, *overrides)
    trained = config_of(DORA, *OPTIMIZER, *overrides)
    trained = changed(trained, {"run": RunSection(name="layout", dir=str(save_to))})
    parallel = initialize(lora)
    results = {
        "LoRA": gradients(lora, parallel),
        "DoRA": gradients(dora, parallel),
        STEPS: layout_steps.two_steps(trained, parallel, save=save_to is not None),
    }
    if find_spec("bitsandbytes"):
        results[NF4] = gradients(layout_steps.config_of(*IN_4_BITS, *overrides), parallel)
    if resume_from:
        results[RESUMED] = layout_steps.second_step(trained, parallel, resume_from)
    return results


if __name__ == "__main__":
    layout_steps.go_through_layouts(all_cases)
