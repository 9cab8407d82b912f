"""Which attention on which GPU, decided from what was found."""

from __future__ import annotations

import pytest

from nvlm.model.parts.attention import SdpaAttention
from nvlm.model.parts.layers import layer_parts
from nvlm.platform.attention import choose_attention
from nvlm.platform.machine import Machine

ENGINE = "transformer_engine"


def machine(
    capability: tuple[int, int],
    cudnn: tuple[int, ...] = (9, 15, 0),
    flash: str = "",
    engine: str = "2.11.0",
    **env: str,
) -> Machine:
    packages = {ENGINE: engine, **({"flash_attn": flash} if flash else {})}
    return Machine("GPU", capability, packages, cudnn=cudnn, environment=env)


@pytest.mark.parametrize(
    "found, implementation, kernel",
    [
        (machine((9, 0)), ENGINE, "cuDNN"),
        (machine((10, 0)), ENGINE, "cuDNN"),
        (machine((10, 3)), ENGINE, "cuDNN"),
        # Its attention over packed documents is for Hopper and later, and not for sm120.
        (machine((8, 0)), "torch", "torch"),
        (machine((8, 9)), "torch", "torch"),
        (machine((12, 0)), "torch", "torch"),
        (machine((8, 0), flash="2.8.1"), ENGINE, "flash-attn"),
        (machine((8, 9), flash="2.7.4.post1"), ENGINE, "flash-attn"),
        (machine((12, 0), flash="2.8.3"), ENGINE, "flash-attn"),
        # Versions that Transformer Engine does not take.
        (machine((8, 0), flash="2.0.0"), "torch", "torch"),
        (machine((8, 0), flash="2.8.3", engine="2.9.0"), "torch", "torch"),
        (machine((12, 0), flash="2.7.0"), "torch", "torch"),
        (machine((9, 0), cudnn=(9, 5, 1)), "torch", "torch"),
        (machine((9, 0), cudnn=(9, 10, 1)), "torch", "torch"),
        (machine((10, 0), cudnn=(9, 6, 0)), "torch", "torch"),
        (machine((9, 0), cudnn=(9, 5, 1), flash="2.8.1"), ENGINE, "flash-attn"),
        (machine((7, 5), flash="2.8.1"), "torch", "torch"),
        (machine((9, 0), NVTE_FUSED_ATTN="0"), "torch", "torch"),
    ],
)
def test_a_kernel_that_fits_or_torch(found, implementation, kernel):
    chosen = choose_attention(found, ENGINE, "bf16")
    assert chosen.implementation == implementation
    assert chosen.kernel.startswith(kernel)
    # Whatever is not the first choice says why.
    assert bool(chosen.reason) == (kernel != "cuDNN")


def test_reasons_name_what_was_found():
    assert "sm80" in choose_attention(machine((8, 0)), ENGINE, "bf16").reason
    assert "9.5.1" in choose_attention(machine((9, 0), cudnn=(9, 5, 1)), ENGINE, "bf16").reason
    refused = choose_attention(machine((8, 0), flash="2.9.0"), ENGINE, "bf16").reason
    assert "2.1.1 to 2.8.3" in refused and "2.9.0" in refused


@pytest.mark.parametrize(
    "layers, precision, to_generate",
    [("local", "bf16", False), (ENGINE, "fp32", False), (ENGINE, "bf16", True)],
    ids=["local", "fp32", "to generate"],
)
def test_torch_where_transformer_engine_does_not_fit(layers, precision, to_generate):
    chosen = choose_attention(machine((9, 0)), layers, precision, to_generate)
    assert chosen.implementation == "torch"
    assert bool(chosen.reason) == (layers != "local")


def test_images_seen_both_ways_take_torch_and_say_why():
    chosen = choose_attention(machine((9, 0)), ENGINE, "bf16", sees_both_ways=True)
    assert chosen.implementation == "torch" and "not within images" in chosen.reason
    assert not choose_attention(machine((9, 0)), "local", "bf16", sees_both_ways=True).reason


def test_dropout_of_attention_takes_torch_and_says_why():
    chosen = choose_attention(machine((9, 0)), ENGINE, "bf16", attention_dropout=0.1)
    assert chosen.implementation == "torch" and "dropout" in chosen.reason


def test_linear_layers_of_one_come_with_the_attention_of_the_other(monkeypatch):
    """Without Transformer Engine its wrappers can be named, not built."""
    import megatron.core.extensions.transformer_engine as wrappers

    for name in ("TEColumnParallelLinear", "TERowParallelLinear", "TEDotProductAttention"):
        monkeypatch.setattr(wrappers, name, name, raising=False)
    assert layer_parts(ENGINE).core_attention == "TEDotProductAttention"
    mixed = layer_parts(ENGINE, "torch")
    assert mixed.core_attention is SdpaAttention
    assert mixed.column_linear == "TEColumnParallelLinear"
