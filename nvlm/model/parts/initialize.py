"""Random weights as a pure function of (seed, key, layer): the same at every process layout.

Each global tensor is drawn whole from a generator of its own, and a rank keeps its shard. The rules
are Megatron's: normal with `init_std`, layers that write to the residual stream scaled down by
sqrt(2 x layers), norms one, biases zero.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fnmatch import fnmatchcase

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nvlm.config.schema import RunConfig, VisionConfig


def initialize_weights(model: MegatronModule, config: RunConfig, pattern: str = "*") -> None:
    """Fill this rank's parameters whose sharded key matches the fnmatch `pattern`.

    Keys are those in `model.sharded_state_dict()`: `vision_projection.mlp.linear_fc1.weight`, ...
    """
    for shard in sharded_tensors(model.sharded_state_dict()):
        if not fnmatchcase(shard.key, pattern):
            continue
        layer = shard.global_offset[0] if shard.prepend_axis_num else None
        shape = shard.global_shape[shard.prepend_axis_num :]
        whole = initial_tensor(config, shard.key, layer, shape)
        local = whole[shard.global_slice()[shard.prepend_axis_num :]]
        with torch.no_grad():
            shard.data.copy_(local)


def sharded_tensors(entries: dict) -> Iterator[ShardedTensor]:
    """The tensors of a sharded state dict; a SwiGLU's gate and up part one by one.

    Their `data` is the parameter itself or a view of it, so writing to it writes to the model.
    """
    for entry in entries.values():
        parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
        for part in parts:
            assert isinstance(part, ShardedTensor), f"{entry} holds no tensor"
            yield part


def initial_tensor(
    config: RunConfig, key: str, layer: int | None, shape: tuple[int, ...]
) -> Tensor:
    """The whole fp32 tensor called `key` (of layer `layer`), whatever rank asks.

    Args:
        key: sharded key, without layer number.
        layer: layer of the tensor within its transformer block; None outside of one.
        shape: of the global tensor, without the layer axis.
    """
    vision = config.model.vision
    if fnmatchcase(key, "vision_model.*.[qk]_layernorm.weight"):
        return without_dummy_heads(torch.ones(shape), vision)
    if key.endswith(("norm.weight", "layer_norm_weight")):
        return torch.ones(shape)
    if key.endswith(".bias"):
        return torch.zeros(shape)
    if key.endswith("_bda.scale"):
        return torch.full(shape, vision.layer_scale_init)

    generator = _generator(config, key, layer)
    drawn = torch.empty(shape).normal_(0, _deviation(config, key), generator=generator)
    if key == "vision_model.decoder.layers.self_attention.linear_qkv.weight":
        return without_dummy_heads(drawn, vision)
    if key == "vision_model.decoder.layers.self_attention.linear_proj.weight":
        return without_dummy_heads(drawn.t(), vision).t()
    return drawn


def _deviation(config: RunConfig, key: str) -> float:
    component = key.partition(".")[0]
    if component == "vision_projection":
        return config.model.projector.init_std
    section = {"vision_model": config.model.vision, "language_model": config.model.language}
    deviation, num_layers = section[component].init_std, section[component].num_layers
    writes_to_residual = key.endswith(("linear_proj.weight", "linear_fc2.weight"))
    return deviation / (2 * num_layers) ** 0.5 if writes_to_residual else deviation


def without_dummy_heads(tensor: Tensor, vision: VisionConfig) -> Tensor:
    """Zero the part of `tensor`'s first axis that belongs to heads beyond the real ones."""
    by_head = tensor.unflatten(0, (vision.num_stored_attention_heads, -1))
    by_head[vision.num_attention_heads :] = 0
    return by_head.flatten(0, 1)


def _generator(config: RunConfig, key: str, layer: int | None) -> torch.Generator:
    name = f"{config.train.seed}:{key}:{layer}"
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
