"""Recomputed activations: the same losses and gradients, fewer kept tensors, more forward calls."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import layout_steps, small_model
from megatron.core.transformer.transformer_layer import TransformerLayer

from nvlm.model.parts.attention import SdpaAttention
from nvlm.model.parts.names import named_modules
from nvlm.parallel.groups import Parallel

NUM_LAYERS = 2  # of each component
SETTINGS = {
    "selective": {"granularity": "selective"},
    "full": {"granularity": "full"},
    "full, 1 layer": {"granularity": "full", "num_layers": 1},
}


def config_of(part: str = "vision", setting: dict | None = None, *overrides: str):
    recompute = [f"train.recompute.{part}.{key}={value}" for key, value in (setting or {}).items()]
    return small_model.small_config("stage.freeze=[]", *recompute, *overrides)


def step(config, parallel: Parallel, freeze: bool = False) -> tuple[dict, Counter, int]:
    """One forward and backward pass over two images and packed documents.

    Returns:
        losses and gradients; how often each layer and core attention ran forward; the bytes that
        autograd kept at the end of the forward pass (parameters not counted).
    """
    (model,) = small_model.build_chunks(config, parallel)
    if freeze:
        layout_steps.freeze([model], config, parallel)
    calls: Counter = Counter()
    for name, module in named_modules(model):
        if isinstance(module, (TransformerLayer, SdpaAttention)):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    # Held, so that no address is given to another; what is discarded later has no bytes then.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    peak = 0

    def forget(tensor):
        # The first tensor that the backward pass asks for: all that is kept is in `kept`.
        nonlocal peak
        peak = peak or sum(storage.nbytes() for storage in kept.values())
        return tensor

    chunks = layout_steps.wrapped([model])
    micro_batches = [small_model.batch(config, 1, [60, 20], num_tiles=2)]
    with torch.autograd.graph.saved_tensors_hooks(keep, forget):
        result = layout_steps.losses_and_gradients(chunks, micro_batches, parallel)
    return result, calls, peak


@pytest.fixture(scope="module")
def kept_everything(parallel) -> tuple[dict, Counter, int]:
    return step(config_of(), parallel)


def layers_of(part: str) -> list[str]:
    return [f"{part}_model.decoder.layers.{layer}" for layer in range(NUM_LAYERS)]


def expected_calls(part: str, setting: dict | None) -> dict[str, int]:
    """Forward calls of each layer and core attention: two where they are recomputed."""
    granularity = (setting or {}).get("granularity")
    calls = {}
    for name in ("vision", "language"):
        for index, layer in enumerate(layers_of(name)):
            recomputed = name == part and index < (setting or {}).get("num_layers", NUM_LAYERS)
            calls[layer] = 2 if recomputed and granularity == "full" else 1
            calls[f"{layer}.self_attention.core_attention"] = 2 if recomputed and setting else 1
    return calls


@pytest.mark.parametrize("part", ["vision", "language"])
@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_gradients_are_those_without(part, name, kept_everything, parallel, measure):
    truth, _, kept_by_all = kept_everything
    result, calls, kept = step(config_of(part, SETTINGS[name]), parallel)
    assert calls == expected_calls(part, SETTINGS[name])

    losses = float((result["losses"][0] - truth["losses"][0]).abs().max())
    ours, expected = layout_steps.assemble([result]), layout_steps.assemble([truth])
    assert ours.keys() == expected.keys()
    gradients = max(
        float((ours[key] - gradient).norm() / gradient.norm()) for key, gradient in expected.items()
    )
    # Attention alone: the gradients of q, k and v are laid out otherwise, and summed so.
    bound = 1e-6 if name == "selective" else 0
    against = "without recomputation"
    measure(f"losses, {part} {name}, largest difference", against, losses, 0)
    measure(f"gradients, {part} {name}, worst tensor, relative", against, gradients, bound)

    # A recomputed layer keeps its input; others keep what their operations cannot do without.
    share = {"selective": 0.99, "full": 0.8, "full, 1 layer": 0.9}[name]
    assert kept < share * kept_by_all, (kept, kept_by_all)


def test_one_layer_keeps_more_than_all_layers(parallel):
    for part in ("vision", "language"):
        all_layers, one_layer = (
            step(config_of(part, SETTINGS[name]), parallel)[2] for name in ("full", "full, 1 layer")
        )
        assert all_layers < one_layer


@pytest.mark.parametrize(
    "part, frozen",
    [("vision", "vision_model.embeddings.*"), ("language", "language_model.embedding.*")],
)
def test_layers_behind_frozen_embeddings_train(part, frozen, parallel):
    """Recomputation reaches parameters through the layers' input, which needs no gradient here."""
    rest = ["vision_*"] if part == "language" else []
    freeze = f"stage.freeze={[frozen, *rest]}"
    truth = step(config_of(part, None, freeze), parallel, freeze=True)[0]
    result = step(config_of(part, SETTINGS["full"], freeze), parallel, freeze=True)[0]
    ours, expected = layout_steps.assemble([result]), layout_steps.assemble([truth])
    assert ours.keys() == expected.keys()
    for key, gradient in expected.items():
        assert gradient.abs().sum() > 0, key
        assert torch.equal(ours[key], gradient), key


def test_a_frozen_vision_encoder_keeps_nothing(kept_everything, parallel):
    config = config_of("language", SETTINGS["full"], "stage.freeze=[vision_model.*]")
    _, calls, kept = step(config, parallel, freeze=True)
    assert calls == expected_calls("language", SETTINGS["full"])
    trained = step(config_of("language", SETTINGS["full"]), parallel)[2]
    vision = config.model.vision
    one_layer_input = 2 * (1 + vision.num_patches) * vision.hidden_size * 4
    assert kept < trained - NUM_LAYERS * 10 * one_layer_input


def test_inference_does_not_recompute(parallel):
    """Full recomputation is for training: evaluation mode runs every layer once."""
    config = config_of("language", SETTINGS["full"])
    (model,) = small_model.build_chunks(config, parallel)
    model.eval()
    calls: Counter = Counter()
    for name, module in named_modules(model):
        if isinstance(module, TransformerLayer):
            module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    with torch.no_grad():
        model(small_model.batch(config, 1, [60, 20], num_tiles=2))
    assert set(calls.values()) == {1}
