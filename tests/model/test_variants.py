"""Model variants as settings: what they hold, that zero heads stay zero, and the exported file."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model, variants

from nvlm.batch import StepBatch
from nvlm.convert.rules import Rule, to_hugging_face, vision_rules
from nvlm.model.nvlm_d import build_model
from nvlm.sizes.parameters import num_padding_parameters, parameter_shapes

ALL = variants.VISION | variants.LANGUAGE


@pytest.mark.parametrize("overrides", ALL.values(), ids=ALL)
def test_parameters_are_those_derived_from_the_configuration(parallel, overrides):
    config = small_model.small_config(*overrides)
    built = {n: tuple(p.shape) for n, p in build_model(config, parallel).named_parameters()}
    assert built == dict(parameter_shapes(config.model))


@pytest.mark.parametrize("overrides", variants.VISION.values(), ids=variants.VISION)
def test_padding_is_counted_as_the_rules_place_it(overrides):
    vision = small_model.small_config(*overrides).model.vision
    rules = vision_rules(vision, vision.num_stored_attention_heads)
    assert num_padding_parameters(vision) == sum(
        rule.dummy_heads(torch.empty(rule.shape)).numel() * rule.num_layers
        for rule in rules
        if rule.dummy_heads is not None
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["6B", "300M"])
def test_zero_heads_stay_zero_through_training(parallel, variant, precision):
    """The vision model trains, with weight decay, and nothing masks the zero heads.

    Why they stay: a zero head's values are zero, so its output is, and with it the gradient of its
    columns of the output projection. These columns are zero, so no gradient comes back into the
    head. Its norm weights see queries and keys of zero. Adam moves nothing whose gradient has
    always been zero, and decay multiplies zero.
    """
    from nvlm.train.freezing import multipliers
    from nvlm.train.optim import build_optimizer, build_scheduler, wrap_data_parallel
    from nvlm.train.step import train_step

    config = small_model.small_config(
        *variants.VISION[variant],
        f"train.precision={precision}",
        "stage.freeze=[]",
        "train.optimizer.weight_decay=0.1",
        "train.optimizer.lr=0.01",
        "train.schedule.warmup_steps=0",
    )
    bare = small_model.build_chunks(config, parallel)
    chunks = wrap_data_parallel(bare, parallel)
    optimizer = build_optimizer(chunks, config, multipliers(bare, config, parallel), parallel)
    scheduler = build_scheduler(optimizer, config)
    parameters = dict(bare[0].named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for step in range(1, 4):
        micro_batches = [
            small_model.batch(config, 2 * step, [60, 20], num_tiles=2),
            small_model.batch(config, 2 * step + 1, [40, 40], num_tiles=0),
        ]
        scheduler.step(increment=1)
        train_step(chunks, optimizer, StepBatch(micro_batches, [], {}), parallel, step)

    vision = config.model.vision
    padded = [r for r in vision_rules(vision, vision.num_attention_heads) if r.dummy_heads]
    assert len(padded) == {"6B": 4, "300M": 3}[variant]
    for rule in padded:
        for layer in range(vision.num_layers):
            name = _parameter_name(rule, layer)
            assert not torch.equal(parameters[name], before[name]), f"{name} did not train"
            zeros = rule.dummy_heads(parameters[name].detach())
            assert zeros.numel() and not zeros.any(), name
            assert not torch.signbit(zeros).any(), name


@pytest.mark.parametrize("variant", variants.VISION)
def test_exported_modelling_file_is_the_same_model(parallel, variant, measure):
    """modeling_intern_vit.py with our weights: outputs, and gradients of every tensor."""
    from nvlm.convert.hf.architectures import vision_values
    from nvlm.convert.hf_files.configuration_intern_vit import InternVisionConfig
    from nvlm.convert.hf_files.modeling_intern_vit import InternVisionModel

    config = small_model.small_config(*variants.VISION[variant])
    vision = config.model.vision
    ours = small_model.build(config, parallel).vision_model
    parameters = {f"vision_model.{n}": p for n, p in ours.named_parameters()}
    stored = vision.num_stored_attention_heads
    settings = {**vision_values(vision), "num_stored_attention_heads": stored}
    exported = InternVisionModel(InternVisionConfig(**settings)).eval()
    rules = [(r, n) for r in vision_rules(vision, stored) for n in r.layers()]
    weights = {}
    for rule, layer in rules:
        weights |= to_hugging_face(rule, layer, parameters[_parameter_name(rule, layer)].detach())
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
    for rule, layer in rules:
        joined = rule.join([gradients[name] for name in rule.names(layer)])
        gradient = parameters[_parameter_name(rule, layer)].grad
        worst = max(worst, float((joined - gradient).norm() / gradient.norm()))
    measure(f"{what}: gradients, worst tensor", truth, worst, 1e-5)


def _parameter_name(rule: Rule, layer: int | None) -> str:
    """Where the tensor of `rule` is in a model of one process."""
    return rule.key.replace(".layers.", f".layers.{layer}.")
