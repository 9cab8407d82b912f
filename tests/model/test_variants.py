"""Model variants as settings: what they hold, that zero heads stay zero, and the exported file."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model, variants

from nvlm.batch import StepBatch
from nvlm.convert.rules import to_hugging_face
from nvlm.convert.tables.internvit import vision_rules
from nvlm.sizes.parameters import VISION, component_parameters


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["6B", "300M"])
def test_zero_heads_stay_zero_through_training(parallel, variant, precision):
    """The vision model trains, with weight decay, and nothing masks the zero heads.

    Why they stay: a zero head's values are zero, so its output is, and with it the gradient of its
    columns of the output projection. These columns are zero, so no gradient comes back into the
    head. Its norm weights see queries and keys of zero. Adam moves nothing whose gradient has
    always been zero, and decay multiplies zero.
    """
    from nvlm.train.training import Training

    config = small_model.small_config(
        *variants.VISION[variant],
        f"train.precision={precision}",
        "stage.freeze=[]",
        "train.optimizer.weight_decay=0.1",
        "train.optimizer.lr=0.01",
        "train.schedule.warmup_steps=0",
    )
    model = small_model.build(config, parallel)
    training = Training(config, parallel, [model])
    parameters = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for step in range(1, 4):
        micro_batches = [
            small_model.batch(config, 2 * step, [60, 20], num_tiles=2),
            small_model.batch(config, 2 * step + 1, [40, 40], num_tiles=0),
        ]
        training.take_step(StepBatch(micro_batches, [], {}))

    padded = [row for row in component_parameters(config.model, VISION) if row.zero_heads]
    assert len(padded) == {"6B": 4, "300M": 3}[variant]
    for row in padded:
        for place in row.places():
            name = row.name(place)
            assert not torch.equal(parameters[name], before[name]), f"{name} did not train"
            zeros = row.zero_heads.of(parameters[name].detach())
            assert zeros.numel() and not zeros.any(), name
            assert not torch.signbit(zeros).any(), name


@pytest.mark.parametrize("variant", variants.VISION)
def test_exported_modelling_file_is_the_same_model(parallel, variant, measure):
    """modeling_intern_vit.py with our weights: outputs, and gradients of every tensor."""
    from nvlm.convert.hf.values import vision_values
    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
    from nvlm.convert.hf_files.modeling_intern_vit import InternVisionModel

    config = small_model.small_config(*variants.VISION[variant])
    vision = config.model.vision
    ours = small_model.build(config, parallel).vision_model
    parameters = {f"vision_model.{n}": p for n, p in ours.named_parameters()}
    stored = vision.num_stored_attention_heads
    settings = {**vision_values(vision), "num_stored_attention_heads": stored}
    exported = InternVisionModel(InternVisionConfig(**settings)).eval()
    rules = [(r, p) for r in vision_rules(config.model, stored) for p in r.parameter.places()]
    weights = {}
    for rule, place in rules:
        weights |= to_hugging_face(rule, place, parameters[rule.parameter.name(place)].detach())
    exported.load_state_dict(weights)

    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, vision.image_size, vision.image_size)
    tiles = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    result = exported((tiles / 255 - mean) / deviation).last_hidden_state[:, 1:]
    expected = ours(tiles)
    truth = "our Megatron InternViT"
    # Measured: at most 2e-6 where outputs reach 10.
    error = float((result - expected).detach().abs().max())
    what = f"modeling_intern_vit.py, {variant}"
    measure(f"{what}: outputs, largest difference", truth, error, 1e-5)

    weighting = torch.randn(expected.shape, generator=generator)
    (expected * weighting).sum().backward()
    (result * weighting).sum().backward()
    gradients = {name: parameter.grad for name, parameter in exported.named_parameters()}
    worst = 0.0
    for rule, place in rules:
        joined = rule.layout.join([gradients[name] for name in rule.names(place)])
        gradient = parameters[rule.parameter.name(place)].grad
        worst = max(worst, float((joined - gradient).norm() / gradient.norm()))
    measure(f"{what}: gradients, worst tensor", truth, worst, 1e-5)
