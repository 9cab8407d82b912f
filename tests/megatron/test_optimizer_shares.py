"""Why ranks write their own share: what plain Megatron-core gathers is much, and can be shifted."""

from __future__ import annotations

from itertools import product
from math import prod

import pytest
import torch
from helpers import small_model
from helpers.optimizer_parts import (
    make_plain,
    read,
    sharded_state,
    take_step,
    with_optimizer,
    written,
)

from nvlm.megatron.optimizer_shares import boxes

# A bucket of its own for this one, as a shared embedding has it. Its 192 elements are no multiple
# of what buckets are padded to.
ALONE = "language_model.decoder.final_layernorm.weight"


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 5), (1, 4), (4, 1), (2, 3, 4), (2, 2, 1, 3)])
def test_boxes_are_every_range_of_elements_in_order(shape):
    places = list(product(*map(range, shape)))
    for first in range(len(places) + 1):
        for last in range(first, len(places) + 1):
            found = [*boxes(shape, first, last)]
            assert len(found) <= 2 * len(shape) - 1
            covered = [
                tuple(offset + step for offset, step in zip(offsets, steps, strict=True))
                for offsets, sizes in found
                for steps in product(*map(range, sizes))
            ]
            assert covered == places[first:last]


def test_state_behind_padding_is_shifted(parallel):
    model, optimizer = _trained(parallel)
    (inner,) = optimizer.chained_optimizers
    (buffer,) = inner.buffers
    assert len(buffer.buckets) == 3 and buffer.numel > buffer.numel_unpadded
    assert _wrongly_written(model, optimizer) == set()
    make_plain(optimizer)
    wrong = _wrongly_written(model, optimizer)
    assert "language_model.embedding.word_embeddings.weight" in wrong
    assert "language_model.output_layer.weight" not in wrong  # before the padding


@pytest.mark.parametrize("writer, reader", [("plain", "ours"), ("ours", "plain")])
def test_either_form_is_read_as_the_other(writer, reader, parallel, tmp_path):
    model, optimizer = _trained(parallel, change=lambda model: None)
    if writer == "plain":
        make_plain(optimizer)
    folder = written(tmp_path / "checkpoint", sharded_state(model, optimizer))
    truth = _moments(optimizer)
    model, optimizer = with_optimizer(small_model.small_config("stage.freeze=[]"), parallel)
    if reader == "plain":
        make_plain(optimizer)
    optimizer.load_state_dict(read(folder, sharded_state(model, optimizer, True))["optimizer"])
    assert torch.equal(_moments(optimizer), truth)


def test_nothing_is_copied_on_the_way(parallel):
    model, optimizer = _trained(parallel)
    (inner,) = optimizer.chained_optimizers
    kept = {
        tensor.untyped_storage().data_ptr()
        for group in inner.optimizer.param_groups
        for parameter in group["params"]
        for tensor in (parameter, *inner.optimizer.state[parameter].values())
    }
    pieces = _pieces(sharded_state(model, optimizer))
    assert {piece.data.untyped_storage().data_ptr() for piece in pieces} == kept
    sizes = sum(prod(piece.local_shape) for piece in pieces)
    assert sizes == 3 * sum(parameter.numel() for parameter in model.parameters())


def _trained(parallel, change=None):
    def give_a_bucket(model):
        dict(model.named_parameters())[ALONE].shared_embedding = True

    config = small_model.small_config("stage.freeze=[]")
    model, optimizer = with_optimizer(config, parallel, change or give_a_bucket)
    take_step(model, optimizer)
    return model, optimizer


def _pieces(state: dict) -> list:
    tensors = state["optimizer"]["param_state"].values()
    return [piece for by_kind in tensors for piece in by_kind.values()]


def _moments(optimizer) -> torch.Tensor:
    (inner,) = optimizer.chained_optimizers
    states = inner.optimizer.state.values()
    return torch.cat([state[key] for state in states for key in ("exp_avg", "exp_avg_sq")])


def _wrongly_written(model, optimizer) -> set[str]:
    """Keys of tensors whose fp32 copy in the optimizer's state is not the model's parameter."""
    from nvlm.checkpoint_shares import sharded_tensors

    state = sharded_state(model, optimizer)
    weights = {(w.key, w.global_offset): w.data for w in sharded_tensors(state["model"])}
    prefix, found, wrong = "optimizer.state.param.", set(), set()
    for number, piece in enumerate(_pieces(state)):
        if piece.key.startswith(prefix):
            for copy in sharded_tensors({str(number): piece}):
                place = copy.key.removeprefix(prefix), copy.global_offset
                found.add(place)
                if not torch.equal(copy.data.view_as(weights[place]), weights[place]):
                    wrong.add(place[0])
    assert found == weights.keys()
    return wrong
