"""Why optimizer state gets its padding back: what plain Megatron-core writes is shifted."""

from __future__ import annotations

import torch
from helpers import small_model
from helpers.optimizer_parts import sharded_state, take_step, with_optimizer

# A bucket of its own for this one, as a shared embedding has it. Its 192 elements are no multiple
# of what buckets are padded to.
ALONE = "language_model.decoder.final_layernorm.weight"


def test_state_behind_padding_is_shifted(parallel):
    def give_a_bucket(model):
        dict(model.named_parameters())[ALONE].shared_embedding = True

    config = small_model.small_config("stage.freeze=[]")
    model, optimizer = with_optimizer(config, parallel, give_a_bucket)
    (inner,) = optimizer.chained_optimizers
    (buffer,) = inner.buffers
    assert len(buffer.buckets) == 3 and buffer.numel > buffer.numel_unpadded
    take_step(model, optimizer)

    assert wrongly_written(model, optimizer) == set()
    del inner.get_parameter_state_dp_zero  # the class's own is called again
    wrong = wrongly_written(model, optimizer)
    assert "language_model.embedding.word_embeddings.weight" in wrong
    assert "language_model.output_layer.weight" not in wrong  # before the padding


def wrongly_written(model, optimizer) -> set[str]:
    """Keys of tensors whose fp32 copy in the optimizer's state is not the model's parameter."""
    state = sharded_state(model, optimizer)
    weights = {(e.key, _layer(e)): e.data for e in state["model"].values()}
    copies = [tensors["param"] for tensors in state["optimizer"]["param_state"].values()]
    assert len(copies) == len(weights)
    wrong = set()
    for copy in copies:
        key = copy.key.removeprefix("optimizer.state.param.")
        if not torch.equal(copy.data, weights[key, _layer(copy)]):
            wrong.add(key)
    return wrong


def _layer(entry) -> object:
    """Layers of a stack share a key; a SwiGLU's two matrices are an entry of another kind."""
    if hasattr(entry, "global_offset"):
        return entry.global_offset
    return _layer(entry.build()[0])
