"""Transformer Engine's layers against the local ones.

Everything that can be checked without a GPU is: that what Megatron-core and our own parts hand to
the local classes is what Transformer Engine's take. Running them needs a GPU (mark `gpu`).
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import megatron.core
import pytest
import torch
from helpers import small_model
from megatron.core.packed_seq_params import PackedSeqParams

from nvlm.model.parts.layers import LayerParts, layer_parts

WRAPPERS = Path(megatron.core.__file__).parent / "extensions" / "transformer_engine.py"


def arguments_of(class_name: str, method: str) -> tuple[list[str], set[str]]:
    """(all argument names in order, those that must be given), read from Megatron-core's source.

    Without Transformer Engine its wrappers cannot be imported.
    """
    tree = ast.parse(WRAPPERS.read_text())
    (owner,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name)
    (function,) = (n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == method)
    found = function.args
    assert found.vararg is None and found.kwarg is None
    positional = [argument.arg for argument in found.args[1:]]
    required = set(positional[: len(positional) - len(found.defaults)])
    required |= {
        argument.arg
        for argument, default in zip(found.kwonlyargs, found.kw_defaults, strict=True)
        if default is None
    }
    return [*positional, *(argument.arg for argument in found.kwonlyargs)], required


def recording(parts: LayerParts) -> tuple[LayerParts, dict[str, list[dict]]]:
    """`parts` that note the arguments of every construction and of every attention call."""
    calls: dict[str, list[dict]] = {}

    def record(kind: str, positional: list[str], args: tuple, kwargs: dict) -> None:
        given = {**dict(zip(positional, args, strict=False)), **kwargs}
        calls.setdefault(kind, []).append(given)

    def wrap(base, kind: str, positional: list[str]):
        class Recorded(base):
            def __init__(self, *args, **kwargs):
                record(kind, positional, args, kwargs)
                super().__init__(*args, **kwargs)

        return Recorded

    class Attention(wrap(parts.core_attention, "TEDotProductAttention.__init__", [])):
        def forward(self, *args, **kwargs):
            names = ["query", "key", "value", "attention_mask"]
            record("TEDotProductAttention.forward", names, args, kwargs)
            return super().forward(*args, **kwargs)

    sizes = ["input_size", "output_size"]
    recorded = LayerParts(
        wrap(parts.column_linear, "TEColumnParallelLinear.__init__", sizes),
        wrap(parts.row_linear, "TERowParallelLinear.__init__", sizes),
        Attention,
    )
    return recorded, calls


@pytest.fixture
def calls(parallel, monkeypatch) -> dict[str, list[dict]]:
    from nvlm.model import nvlm_d

    parts, calls = recording(layer_parts("local"))
    monkeypatch.setattr(nvlm_d, "layer_parts", lambda implementation: parts)
    config = small_model.small_config()
    model = small_model.build(config, parallel)
    model(small_model.batch(config, 1, [60, 20], num_tiles=2))
    return calls


def test_arguments_are_those_of_transformer_engine(calls):
    assert len(calls) == 4
    for what, given in calls.items():
        names, required = arguments_of(*what.split("."))
        for arguments in given:
            assert arguments.keys() <= set(names), what
            assert required <= arguments.keys(), what


def test_values_are_ones_that_transformer_engine_takes(calls):
    for arguments in calls["TEColumnParallelLinear.__init__"]:
        assert not arguments["gather_output"] and not arguments["is_expert"]
    for arguments in calls["TERowParallelLinear.__init__"]:
        assert arguments["input_is_parallel"] and not arguments["is_expert"]
    for arguments in calls["TEDotProductAttention.forward"]:
        assert arguments["attention_mask"] is None
        packed: PackedSeqParams | None = arguments["packed_seq_params"]
        num_tokens = arguments["query"].shape[0]
        if packed is None:
            # The vision encoder: [s, b, h, d], every patch sees every other.
            assert arguments["attn_mask_type"].name == "no_mask"
            assert arguments["query"].ndim == 4
            continue
        # Documents [t, h, d], one after the other without padding between them.
        assert packed.qkv_format == "thd" and arguments["query"].ndim == 3
        assert arguments["attn_mask_type"].name == "causal"
        for starts in (packed.cu_seqlens_q, packed.cu_seqlens_kv):
            assert starts.dtype == torch.int32 and starts.device == arguments["query"].device
            assert starts[0] == 0 and starts[-1] == num_tokens
        assert isinstance(packed.max_seqlen_q, int) and isinstance(packed.max_seqlen_kv, int)
        assert packed.cu_seqlens_q_padded is None and packed.cu_seqlens_kv_padded is None
        # What Flash Attention takes.
        assert arguments["query"].shape[-1] % 8 == 0


needs_transformer_engine = pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("transformer_engine") is None,
    reason="needs a GPU and Transformer Engine",
)


def config_of(implementation: str, precision: str):
    return small_model.small_config(
        "stage.freeze=[]",
        f"model.layer_implementation={implementation}",
        f"train.precision={precision}",
    )


def loss_and_gradients(implementation: str, parallel) -> tuple[torch.Tensor, dict]:
    """bf16, QK-norm and full attention in the encoder, packed documents in the decoder."""
    from nvlm import platform
    from nvlm.train.optim import wrap_data_parallel

    config = config_of(implementation, "bf16")
    model = small_model.build(config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    micro_batch = small_model.batch(config, 1, [60, 20], num_tiles=2)
    micro_batch = micro_batch.to(platform.current().device())
    with torch.no_grad():
        mask = micro_batch.loss_mask()
        loss = (model(micro_batch) * mask).sum() / mask.sum()
    return loss, small_model.mean_loss_gradients(chunks, [micro_batch])


@pytest.mark.gpu
@needs_transformer_engine
def test_losses_and_gradients_in_bf16(parallel, measure):
    loss, gradients = loss_and_gradients("transformer_engine", parallel)
    expected_loss, expected = loss_and_gradients("local", parallel)
    assert gradients.keys() == expected.keys()
    worst = max(float((gradients[k] - e).norm() / e.norm()) for k, e in expected.items())
    # Bounds by the resolution of bf16 (2^-8), not by measurement: no GPU was at hand.
    error = float((loss - expected_loss).abs() / expected_loss)
    measure("loss, Transformer Engine in bf16, relative", "local layers", error, 1e-2)
    measure("gradients, Transformer Engine in bf16, worst tensor", "local layers", worst, 1e-1)


@pytest.mark.gpu
@needs_transformer_engine
def test_vision_encoder_in_fp32(parallel, measure):
    """The decoder's packed attention has no fp32 in Transformer Engine; the encoder's has."""
    from nvlm import platform
    from nvlm.model.encoders.internvit import InternViT
    from nvlm.model.parts.transformer_config import vision_transformer_config

    config = config_of("local", "fp32")
    local = small_model.build(config, parallel).vision_model
    theirs = InternViT(
        config.model.vision,
        vision_transformer_config(config, "transformer_engine"),
        layer_parts("transformer_engine"),
        parallel.groups,
    ).to(platform.current().device())
    theirs.load_state_dict(local.state_dict(), strict=False)
    tiles = small_model.batch(config, 1, [60], num_tiles=2).tiles.to(platform.current().device())
    outputs = {}
    for name, model in (("local", local), ("theirs", theirs)):
        outputs[name] = model(tiles)
        outputs[name].square().sum().backward()
    error = (outputs["theirs"] - outputs["local"]).norm() / outputs["local"].norm()
    parameters = dict(theirs.named_parameters())
    worst = max(
        float((parameters[name].grad - p.grad).norm() / p.grad.norm())
        for name, p in local.named_parameters()
    )
    # Transformer Engine may multiply fp32 in TF32, which keeps 10 bits.
    measure("InternViT, Transformer Engine in fp32, outputs", "local layers", float(error), 5e-3)
    measure("InternViT, Transformer Engine in fp32, gradients", "local layers", worst, 2e-2)


@pytest.mark.gpu
@needs_transformer_engine
@pytest.mark.parametrize(
    "writer, reader", [("transformer_engine", "local"), ("local", "transformer_engine")]
)
def test_a_checkpoint_of_one_is_read_by_the_other(writer, reader, parallel, tmp_path):
    from nvlm.checkpoint_io import write_checkpoint
    from nvlm.model.nvlm_d import build_model
    from nvlm.train.checkpoint import load_weights

    config = config_of(writer, "bf16")
    model = small_model.build(config, parallel)
    state = model.sharded_state_dict()
    assert not any(key.endswith("_extra_state") for key in state)
    checkpoint = write_checkpoint(tmp_path / "checkpoint", {"model": state}, config)

    other = build_model(config_of(reader, "bf16"), parallel)
    load_weights(checkpoint, [other])
    written = dict(model.named_parameters())
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, written.pop(name)), name
    assert not written
