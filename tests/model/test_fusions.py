"""Which of Megatron-core's fusions compute what the model means, and where they are used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from helpers import small_model
from torch import Tensor
from torch.nn import functional

from nvlm.model.parts import rms_norm, swiglu
from nvlm.model.parts.transformer_config import (
    connector_transformer_config,
    language_transformer_config,
    vision_transformer_config,
)

NUM_TOKENS, VOCABULARY = 40, 96


@pytest.fixture
def as_written() -> Iterator[None]:
    """Megatron-core's fusions are compiled for a GPU if it was imported before the platform."""
    with torch.compiler.set_stance("force_eager"):
        yield


def cross_entropy(function, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Loss of each token, and the gradient of the logits."""
    generator = torch.Generator().manual_seed(1)
    drawn = 3 * torch.randn(NUM_TOKENS, 1, VOCABULARY, generator=generator)
    logits = drawn.to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (NUM_TOKENS, 1), generator=generator)
    loss = function(logits.clone(), labels)
    loss.backward(torch.randn(NUM_TOKENS, 1, generator=generator))
    assert logits.grad is not None
    return loss.detach(), logits.grad


def largest_error(dtype: torch.dtype, group) -> float:
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    pairs = zip(
        cross_entropy(vocab_parallel_cross_entropy, dtype),
        cross_entropy(
            lambda x, labels: fused_vocab_parallel_cross_entropy(x, labels, group), dtype
        ),
        strict=True,
    )
    return max(float((fused - truth).abs().max()) for truth, fused in pairs)


def test_fused_cross_entropy_is_used_in_bf16_alone(as_written, parallel, measure):
    """In bf16 its bits are those of the other; in fp32 it rounds gradients to bf16 all the same."""
    error = largest_error(torch.bfloat16, parallel.groups.tp)
    measure("fused cross entropy in bf16, loss and gradient", "the unfused one", error, 0)
    assert largest_error(torch.float32, parallel.groups.tp) > 1e-3
    settings = language_transformer_config(small_model.small_config(), "local")
    assert settings.cross_entropy_fusion_impl == "native"


def test_fused_gelu_is_another_function(as_written, parallel):
    """InternViT and the projector have the one with the error function; the fused one has tanh."""
    from megatron.core.fusions.fused_bias_gelu import bias_gelu

    values = torch.linspace(-4, 4, 801)
    assert (bias_gelu(torch.zeros(()), values) - functional.gelu(values)).abs().max() > 1e-4
    config = small_model.small_config("train.precision=bf16")
    vision = vision_transformer_config(config, config.model.vision, "local")
    for settings in (vision, connector_transformer_config(config, "local")):
        assert not settings.bias_activation_fusion
        assert settings.activation_func is functional.gelu


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_functions_round_as_they_are_written(measure):
    """The compiler leaves casts to bf16 out unless it is told not to."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().cuda()

    hidden, weight, gradient = drawn(300, 1, 1024), drawn(1024), drawn(300, 1, 1024)
    plain = rms_norm.normalized.__wrapped__(hidden, weight, 1e-6)  # type: ignore[attr-defined]
    output, scale = rms_norm.normalized(hidden, weight, 1e-6)
    different = float((output != plain[0]).float().mean())
    # A mean of squares that is added up in another order may round some numbers otherwise.
    measure("compiled RMSNorm, share of numbers that differ", "as written", different, 1e-2)
    pairs = {
        "gradient of its input": (rms_norm.input_gradient, (gradient, hidden, weight, scale)),
        "gradient of its weight": (rms_norm.weight_gradient, (gradient, hidden, scale)),
        "SwiGLU": (swiglu.product, (gradient,)),
        "gradient of SwiGLU": (swiglu.input_gradient, (gradient[..., :512], hidden)),
    }
    for name, (function, arguments) in pairs.items():
        truth = function.__wrapped__(*arguments).float()
        error = float((function(*arguments).float() - truth).norm() / truth.norm())
        measure(f"compiled, {name}, relative", "as written", error, 2**-8)
