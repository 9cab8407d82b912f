"""Layers with experts against transformers' Qwen3-MoE, routers' losses against its formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import published_models, small_model, variants
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from nvlm.convert.rules import to_hugging_face
from nvlm.convert.tables.qwen2 import language_rules

EXPERTS = [
    *variants.QWEN3,
    "model.language.moe={num_experts: 4, every_nth_layer: 2, ffn_hidden_size: 96,"
    " load_balance_loss: 0.5, z_loss: 0.1}",
]


@pytest.fixture(autouse=True)
def own_scale(monkeypatch):
    """Megatron-core keeps the scale of these losses in the class. A backward pass without schedule
    leaves it as a number, on which the next schedule of the process would stumble."""
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    monkeypatch.setattr(MoEAuxLossAutoScaler, "main_loss_backward_scale", None)


@pytest.fixture
def model(parallel):
    return small_model.build(small_model.small_config(*EXPERTS), parallel)


def gradients_of(model) -> dict[str, torch.Tensor]:
    named = model.language_model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def hugging_face(config, tensors: dict) -> dict[str, torch.Tensor]:
    """As a model of transformers holds them: experts of a layer side by side."""
    found: dict[str, torch.Tensor] = {}
    experts: dict[str, list[torch.Tensor]] = {}
    for rule in language_rules(config.model):
        for place in rule.parameter.places():
            tensor = tensors[rule.parameter.name(place).removeprefix("language_model.")]
            if place.expert is None:
                found |= to_hugging_face(rule, place, tensor)
            else:
                name = "gate_up_proj" if "linear_fc1" in rule.key else "down_proj"
                key = f"model.layers.{place.layer}.mlp.experts.{name}"
                experts.setdefault(key, []).append(tensor)
    return {**found, **{key: torch.stack(parts) for key, parts in experts.items()}}


def test_equals_transformers_qwen3_moe(model, measure):
    """Logits, and gradients of every tensor; `eval`, where routers add no losses."""
    config = small_model.small_config(*EXPERTS)
    published = published_models.language_model(config.model.language)
    weights = {n: p.detach() for n, p in model.language_model.named_parameters()}
    missing, unexpected = published.load_state_dict(hugging_face(config, weights), strict=False)
    assert not missing and not unexpected
    batch = small_model.batch(config, 1, [80], num_tiles=0)
    logits = model.eval()(batch, return_logits=True)
    expected = published(batch.tokens).logits
    truth = "transformers Qwen3MoeForCausalLM"
    error = float((logits - expected).detach().abs().max())
    measure("logits of a decoder with experts, largest difference", truth, error, 1e-4)

    weighting = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (logits * weighting).sum().backward()
    (expected * weighting).sum().backward()
    found = hugging_face(config, gradients_of(model))
    worst = max(
        float((found[name] - parameter.grad).norm() / parameter.grad.norm())
        for name, parameter in published.named_parameters()
    )
    measure("gradients of a decoder with experts, worst tensor", truth, worst, 1e-5)


def test_losses_are_those_of_transformers_and_weigh_as_configured(model, measure):
    config = small_model.small_config(*EXPERTS)
    batch = small_model.batch(config, 1, [60, 20], num_tiles=0)
    is_padding = torch.arange(80)[None] >= 70
    batch = replace(batch, source_numbers=torch.where(is_padding, -1, 0).to(torch.int32))
    logits: list[torch.Tensor] = []
    routers = [m for m in model.modules() if type(m).__name__ == "Router"]
    hooks = [
        router.register_forward_pre_hook(
            lambda module, inputs: logits.append(inputs[0][:, 0] @ module.weight.t())
        )
        for router in routers
    ]
    loss = model.eval()(batch).sum()
    for hook in hooks:
        hook.remove()
    assert len(logits) == 1  # of two layers the second
    valid = ~is_padding
    balance = load_balancing_loss_func(tuple(logits), 4, 2, valid.long()) / 2
    z_loss = logits[0][valid[0]].logsumexp(-1).square().mean()
    scale = 0.25
    (loss + scale * 70 * (0.5 * balance + 0.1 * z_loss)).backward()
    expected = gradients_of(model)

    model.zero_grad()
    model.train()
    model.router_losses.begin_step(scale)
    model(batch).sum().backward()
    sums = model.router_losses.sums.tolist()
    assert sums[2] == 70
    truth = "transformers load_balancing_loss_func"
    error = abs(sums[0] / 70 - float(balance))
    measure("load-balance loss of a router", truth, error, 1e-6)
    error = abs(sums[1] / 70 - float(z_loss))
    measure("z-loss of a router", "its formula", error, 1e-5)
    worst = max(
        float((found - expected[name]).norm() / expected[name].norm())
        for name, found in gradients_of(model).items()
    )
    measure("gradients with the routers' losses, worst tensor", truth, worst, 1e-5)
