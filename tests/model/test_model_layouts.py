"""The same losses, gradients and weights at every layout, with the vision encoder trained too.

One process is the truth. Four others go through the layouts; where a layout leaves two data ranks,
the second of them has no image in any micro-batch. `LONG_LAYOUTS` have more ranks of a kind than
the others, or another division of layers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import layout_runs, layout_steps
from helpers.layout_runs import Layouts, short_and_long
from helpers.layout_steps import FUSED, FUSED_WITHOUT_IMAGES, QWEN3, RESUMED, STEPS

from nvlm.parallel.groups import initialize

NUM_PROCESSES = 4
LAYOUTS = {
    "TP2 x DP2": ["parallel.tensor=2"],
    "TP2 + SP x PP2 x VPP2, recomputed": [
        "parallel.tensor=2",
        "parallel.sequence=true",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "stage.freeze=[]",
        "train.recompute.vision.granularity=full",
        "train.recompute.language.granularity=full",
    ],
}
LONG_LAYOUTS = {
    "PP2 x DP2": ["parallel.pipeline=2"],
    # The first stage has a first chunk of the encoder alone.
    "PP2 x VPP2 x DP2, layers 0+1 2+1": [
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "parallel.layout=[[0, 1], [2, 1]]",
    ],
    "TP4": ["parallel.tensor=4"],
    "TP4 + SP": ["parallel.tensor=4", "parallel.sequence=true"],
    "PP2 x VPP2 x DP2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    # The first stage has the encoder alone.
    "PP4, layers 0 2 1 1, recomputed": [
        "parallel.pipeline=4",
        "parallel.layout=[0, 2, 1, 1]",
        "train.recompute.language.granularity=full",
    ],
}
GRADIENTS = [
    "with images",
    "without images",
    "InternViT-300M, shared embeddings",
    QWEN3,
    "projector only",
    *FUSED.values(),
    FUSED_WITHOUT_IMAGES,
]
# Each takes the second step from its predecessor's checkpoint, the first from one process's.
CHECKPOINTING = ["TP2 + SP x PP2 x VPP2, recomputed"]
LONG_CHECKPOINTING = [
    "PP2 x VPP2 x DP2, layers 0+1 2+1",
    "TP4 + SP",
    "PP2 x VPP2 x DP2",
    "PP4, layers 0 2 1 1, recomputed",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def single(parallel, folder) -> dict:
    return layout_steps.all_cases([], save_to=folder / layout_steps.SINGLE)


@pytest.fixture(scope="module")
def results_of(single, folder) -> Callable[[str], list[dict]]:
    """Layout -> the results of each rank."""
    jobs = Layouts(LAYOUTS, CHECKPOINTING), Layouts(LONG_LAYOUTS, LONG_CHECKPOINTING)
    return layout_runs.reader(layout_steps.__file__, NUM_PROCESSES, folder, *jobs)


@pytest.mark.parallel
@pytest.mark.parametrize("case", [*GRADIENTS, STEPS])
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, LONG_LAYOUTS))
def test_layout_equals_one_process(layout, case, single, results_of, measure):
    results = [result[case] for result in results_of(layout)]
    tensors, expected = layout_steps.assemble(results), layout_steps.assemble([single[case]])
    assert tensors.keys() == expected.keys()
    errors = {key: relative_error(tensors[key], expected[key]) for key in expected}
    worst = max(errors, key=errors.__getitem__)
    print(f"{layout}, {case}: largest relative error {errors[worst]:.2e} at {worst}")
    # A step moves a norm's weight, which is about 1, by 1e-3: a fp32 rounding of the weight is
    # already 6e-5 of that.
    kind, bound = ("changes", 1e-4) if case == STEPS else ("gradients", 1e-5)
    measure(f"{kind} of the worst tensor, {layout}, {case}", "one process", errors[worst], bound)


@pytest.mark.parallel
@pytest.mark.parametrize(
    "layout", short_and_long([*CHECKPOINTING, "one process"], LONG_CHECKPOINTING)
)
def test_checkpoint_of_another_layout_goes_on(layout, single, results_of, folder, measure):
    if layout == "one process":
        results_of(CHECKPOINTING[-1])
        config = layout_steps.config_of(*layout_steps.SMALL, *layout_steps.OPTIMIZER)
        parallel = initialize(config, world_size=1)
        results = [layout_steps.second_step(config, parallel, folder / CHECKPOINTING[-1])]
    else:
        results = [result[RESUMED] for result in results_of(layout)]
    change, expected = layout_steps.assemble(results), layout_steps.assemble([single[STEPS]])
    assert change.keys() == expected.keys()
    worst = max(relative_error(change[key], expected[key]) for key in expected)
    measure(f"change of weights after resuming, {layout}", "one process", worst, 1e-4)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    size = float(expected.norm())
    # Where the truth is zero (what only images reach, in a step without them) so must this be.
    return float((found - expected).norm()) / size if size else float(found.abs().max())


@pytest.mark.parallel
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, LONG_LAYOUTS))
def test_losses_equal_those_of_one_process(layout, single, results_of, measure):
    worst = 0.0
    for case in [*GRADIENTS, STEPS]:
        expected = single[case]["losses"]
        found = {}
        for result in results_of(layout):
            found.update(result[case]["losses"])
        assert found.keys() == expected.keys()
        worst = max(worst, *(relative_error(found[key], expected[key]) for key in expected))
    measure(f"losses per token, {layout}", "one process", worst, 1e-5)


def test_a_step_without_images_leaves_the_encoder_at_zero(single):
    gradients = layout_steps.assemble([single["without images"]])
    of_images = {key for key in gradients if key[0].startswith("vision_")}
    assert of_images
    for key, gradient in gradients.items():
        assert bool(gradient.any()) == (key not in of_images), key


def test_every_parameter_has_a_gradient(single):
    cases = ["with images", "InternViT-300M, shared embeddings", "projector only", *FUSED.values()]
    for case in cases:
        for key, gradient in layout_steps.assemble([single[case]]).items():
            assert gradient.norm() > 0, (case, key)


def test_zero_heads_have_zero_gradients(single):
    vision = layout_steps.config_of().model.vision
    real = vision.num_attention_heads
    gradients = layout_steps.assemble([single["with images"]])
    for layer in range(vision.num_layers):
        attention = "vision_model.decoder.layers.self_attention"
        by_head = {
            "linear_qkv": gradients[f"{attention}.linear_qkv.weight", layer],
            "q_layernorm": gradients[f"{attention}.q_layernorm.weight", layer],
            "k_layernorm": gradients[f"{attention}.k_layernorm.weight", layer],
            "linear_proj": gradients[f"{attention}.linear_proj.weight", layer].t(),
        }
        for name, gradient in by_head.items():
            heads = gradient.unflatten(0, (vision.num_stored_attention_heads, -1))
            assert heads[:real].abs().sum() > 0, name
            assert torch.equal(heads[real:], torch.zeros_like(heads[real:])), name
