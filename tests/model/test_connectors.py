"""Each kind of connector against other code for it, and the rules that its file keeps."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import small_model, timm_reference
from helpers.connectors import CONNECTORS, TOKENS
from helpers.paths import REPOSITORY
from torch import Tensor, nn
from torch.nn import functional

from nvlm.config.connectors import KINDS
from nvlm.config.connectors.sizes import ConnectorSizes
from nvlm.model.connectors import attention_pooling, c_abstractor, linear
from nvlm.model.parts.pixel_shuffle import pixel_shuffle

# A map of 6 x 6 patches with 20 channels, for a decoder 24 wide.
SIZES = ConnectorSizes(num_patches=36, channels=20, hidden_size=24)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module: Any) -> Any:
    """In double precision, in which two programs of one function hardly differ."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + 0.1)
    return module.double()


def errors(module: nn.Module, reference, copies: dict[str, nn.Parameter]) -> tuple[float, float]:
    """Largest difference of outputs, and of gradients relative to their size.

    Args:
        reference: patches -> tokens.
        copies: name of a parameter of `module` -> the reference's own, which takes its value.
    """
    parameters = dict(module.named_parameters())
    for name, copy in copies.items():
        copy.data.copy_(parameters[name])
    patches = drawn(2, SIZES.num_patches, SIZES.channels).double().requires_grad_()
    same = patches.detach().clone().requires_grad_()
    found, expected = module(patches), reference(same)
    weights = drawn(*found.shape, seed=2)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs: list[Any] = [(parameters[name].grad, copy.grad) for name, copy in copies.items()]
    worst = max(
        float((ours - theirs).norm() / theirs.norm())
        for ours, theirs in [*pairs, (patches.grad, same.grad)]
    )
    return float((found - expected).detach().abs().max()), worst


@pytest.mark.parametrize("name", CONNECTORS)
def test_rows_and_tokens_are_the_modules(parallel, name):
    """`build` compares names and shapes with the table; each parameter has a gradient."""
    config = small_model.small_config(*CONNECTORS[name])
    assert config.model.num_tokens_per_tile == TOKENS[name]
    model = small_model.build(config, parallel)
    size, channels = model.visual.feature_shape
    tokens = model.vision_projection(drawn(3, size, channels))
    assert tokens.shape == (3, TOKENS[name], config.model.language.hidden_size)
    tokens.square().sum().backward()
    for key, parameter in model.vision_projection.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mlp"])
def test_an_export_can_take_the_file_along(kind):
    tree = ast.parse((REPOSITORY / f"nvlm/model/connectors/{kind}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
    assert imported == {"torch"}


@pytest.mark.parametrize("factor", [1, 2])
def test_linear_shuffles_as_the_mlp_does(factor):
    settings = SimpleNamespace(pixel_shuffle=factor, norm_epsilon=1e-6)
    module = filled(linear.Connector(settings, SIZES))
    patches = drawn(2, SIZES.num_patches, SIZES.channels).double()
    expected = module.linear(module.norm(pixel_shuffle(patches, factor)))
    assert torch.equal(module(patches), expected)


def test_average_pooling_is_the_mean_of_blocks(parallel):
    config = small_model.small_config(*CONNECTORS["average_pooling"])
    module = small_model.build(config, parallel).vision_projection
    patches = drawn(2, 64, config.model.vision.hidden_size)
    means = patches.view(2, 2, 4, 2, 4, -1).mean((2, 4)).view(2, 4, -1)
    torch.testing.assert_close(module(patches), module.linear(module.norm(means)))


def test_attention_pooling_equals_torchs_attention(measure):
    """torch's own, with an identity where it projects queries."""
    settings = SimpleNamespace(num_queries=7, num_attention_heads=4, norm_epsilon=1e-6)
    module = filled(attention_pooling.Connector(settings, SIZES))
    names = ("queries", "norm.weight", "norm.bias", "linear_kv.weight", "linear.weight")
    copies = {
        name: nn.Parameter(dict(module.named_parameters())[name].detach().clone()) for name in names
    }
    width, identity = SIZES.channels, torch.eye(SIZES.channels).double()

    def reference(patches: Tensor) -> Tensor:
        queries, weight, bias, keys_and_values, out = (copies[name] for name in names)
        normed = functional.layer_norm(patches, (width,), weight, bias, 1e-6).transpose(0, 1)
        attended, _ = functional.multi_head_attention_forward(
            queries[:, None].expand(-1, 2, -1), normed, normed, width, 4,
            torch.cat([identity, keys_and_values]), None, None, None, False, 0.0,
            identity, None,
        )  # fmt: skip
        return functional.linear(attended.transpose(0, 1), out)

    output, gradient = errors(module, reference, copies)
    truth = "torch.nn.functional.multi_head_attention_forward"
    # In double precision; measured: 3e-15 where outputs reach 20, 1e-15 of a gradient's size.
    measure("attention pooling: outputs, largest difference", truth, output, 1e-12)
    measure("attention pooling: gradients, worst tensor", truth, gradient, 1e-12)


def test_c_abstractor_equals_timms_blocks(measure):
    """timm's RegStage and torch's adaptive pooling; the parameters' names are theirs too."""
    timm = timm_reference.timm()
    regnet, norms = timm.models.regnet, timm.layers
    settings = SimpleNamespace(num_queries=16, hidden_size=32, depth=2)
    module = filled(c_abstractor.Connector(settings, SIZES))

    def stage(num_inputs: int) -> nn.Module:
        return regnet.RegStage(
            2, num_inputs, 32, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=norms.LayerNorm2d
        )

    reference = nn.ModuleDict({"before": stage(SIZES.channels), "after": stage(32)})
    reference["readout"] = nn.Sequential(nn.Linear(32, 24), nn.SiLU(), nn.Linear(24, 24))
    positions = nn.Parameter(torch.empty(SIZES.num_patches, SIZES.channels).double())

    def compute(patches: Tensor) -> Tensor:
        patch_map = (patches + positions).transpose(1, 2).unflatten(2, (6, 6))
        pooled = functional.adaptive_avg_pool2d(reference["before"](patch_map), 4)
        return reference["readout"](reference["after"](pooled).flatten(2).transpose(1, 2))

    reference.double()
    copies = {**dict(reference.named_parameters()), "positions": positions}
    assert copies.keys() == dict(module.named_parameters()).keys()
    output, gradient = errors(module, compute, copies)
    truth = "timm's RegStage and torch's adaptive pooling"
    # In double precision; measured: 9e-16, and 2e-15 of a gradient's size.
    measure("C-Abstractor: outputs, largest difference", truth, output, 1e-12)
    measure("C-Abstractor: gradients, worst tensor", truth, gradient, 1e-12)
