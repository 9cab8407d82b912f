"""Why the input of recomputed layers asks for a gradient: behind frozen embeddings they train as
layers do that are not recomputed."""

from __future__ import annotations

import pytest
from helpers import small_model
from torch import Tensor

from nvlm.model import nvlm_d

LAYERS, NORMS = ".decoder.layers.", "layernorm."


def gradients(parallel, part: str, granularity: str, trained: str) -> dict[str, Tensor]:
    """Of what `trained` names in the layers of `part`; nothing before them trains."""
    setting = f"train.recompute.{part}.granularity={granularity}"
    config = small_model.small_config("stage.freeze=[]", setting)
    model = small_model.build(config, parallel)
    for name, parameter in model.named_parameters():
        inside = name.startswith(f"{part}_model{LAYERS}") and trained in name
        parameter.requires_grad = inside
    batch = small_model.batch(config, 1, [600, 20], num_tiles=0 if part == "language" else 3)
    (model(batch) * batch.weights()).sum().backward()
    parameters = [(name, found) for name, found in model.named_parameters() if found.requires_grad]
    assert parameters
    return {name: found.grad for name, found in parameters if found.grad is not None}


@pytest.mark.parametrize("trained", [LAYERS, NORMS], ids=["layers", "norms"])
@pytest.mark.parametrize("granularity", ["full", "selective"])
@pytest.mark.parametrize("part", ["language", "vision"])
def test_recomputed_layers_train(parallel, part, granularity, trained, measure):
    expected = gradients(parallel, part, "none", trained)
    found = gradients(parallel, part, granularity, trained)
    assert found.keys() == expected.keys()
    worst = max(
        float((found[name] - gradient).norm() / gradient.norm())
        for name, gradient in expected.items()
    )
    what = f"gradients of {part} {trained.strip('.')} behind frozen embeddings, {granularity}"
    measure(what, "without recomputation", worst, 1e-6)  # sums in another order: 1e-7


def test_plain_recomputed_layers_do_not_train(parallel, monkeypatch):
    monkeypatch.setattr(nvlm_d, "recomputable", lambda hidden, layers: hidden)
    for granularity, trained in (("full", LAYERS), ("selective", NORMS)):
        with pytest.raises(RuntimeError, match="does not require grad"):  # none of them is reached
            gradients(parallel, "language", granularity, trained)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        gradients(parallel, "language", "selective", LAYERS)


def test_frozen_layers_keep_nothing(parallel):
    """Text through a frozen decoder: no gradient is asked for, so no activation is kept."""
    config = small_model.small_config("train.recompute.language.granularity=selective")
    model = small_model.build(config, parallel)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("vision_projection.")
    assert not model(small_model.batch(config, 1, [60, 20], num_tiles=0)).requires_grad
