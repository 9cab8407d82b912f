"""Operations of a plan against torch's flop counter, component by component, on the small model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import adapter_steps, small_model, variants
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nvlm.model.parts.names import is_frozen
from nvlm.plan.operations import sequence_flops
from nvlm.plan.work import Work
from nvlm.sizes.flops import forward_flops
from nvlm.train.freezing import freeze

LENGTHS, NUM_TILES = [140, 60], 2
FROZEN = {
    "nothing": "stage.freeze=[]",
    "the encoder": "stage.freeze=['vision_model.*']",
    "all but the projector": "stage.freeze=['vision_model.*','language_model.*']",
    "all but adapters": adapter_steps.LORA,
}
VARIANTS = {"6B": [], "300M, Qwen3": [*variants.INTERNVIT_300M, *variants.QWEN3]}


def counted(run: Callable) -> int:
    """Operations of `run` and of the backward pass of what it gives, as torch counts them.

    Its counter knows the products of attention that is written out, and not the fused one of a CPU.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = run()
        if output.requires_grad:
            output.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("frozen", FROZEN.values(), ids=FROZEN)
def test_of_a_training_step(parallel, frozen: str, variant: list[str], measure):
    length = sum(LENGTHS)
    config = small_model.small_config(frozen, f"stage.sequence_length={length}", *variant)
    (model,) = small_model.build_chunks(config, parallel)
    freeze([model], config, parallel)
    batch = small_model.batch(config, 1, LENGTHS, num_tiles=NUM_TILES)
    patches = model.vision_model(batch.tiles).detach()
    patches.requires_grad_(not is_frozen(model.vision_model))
    encoder = counted(lambda: model.vision_model(batch.tiles))
    projector = counted(lambda: model.vision_projection(patches))
    decoder = counted(lambda: model(batch)) - encoder - projector

    pairs = sum(n**2 for n in LENGTHS)
    planned = sequence_flops(config, Work(NUM_TILES, NUM_TILES, length, pairs, 2, "these"))
    # Written out, attention computes the half that the mask hides as well, in three passes.
    masked = 3 * forward_flops(config.model).per_token_pair * pairs
    for name, expected, found in (
        ("encoder", encoder, planned.encoder),
        ("projector", projector, planned.projector),
        ("decoder", decoder, planned.decoder + masked),
    ):
        # With adapters, the input of the encoder's first layer needs no gradient: one product of
        # the eight that two layers have.
        bound = 0.04 if name == "encoder" and "adapters" in frozen else 0.01
        measure(f"operations of the {name}", "torch's counter", abs(found / expected - 1), bound)
