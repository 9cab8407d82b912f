"""Random weights as a pure function of (seed, key, layer): the same at every process layout.

Each global tensor is drawn whole from a generator of its own, and a rank keeps its shard. What a
tensor begins as is in the table of parameters (`nvlm.sizes.parameters`), by Megatron's rules:
normal, layers that write to the residual stream scaled down by sqrt(2 x layers), norms one, biases
zero.
"""

from __future__ import annotations

import hashlib
from fnmatch import fnmatchcase

import torch
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nvlm.checkpoint_shares import sharded_tensors
from nvlm.config.schema import RunConfig
from nvlm.sizes.parameters import parameters_by_key
from nvlm.sizes.row import Constant, Parameter


def initialize_weights(model: MegatronModule, config: RunConfig, pattern: str = "*") -> None:
    """Fill this rank's parameters whose sharded key matches the fnmatch `pattern`.

    Keys are those in `model.sharded_state_dict()`: `vision_projection.mlp.linear_fc1.weight`, ...
    """
    table = parameters_by_key(config.model)
    for shard in sharded_tensors(model.sharded_state_dict()):
        if not fnmatchcase(shard.key, pattern):
            continue
        layer = shard.global_offset[0] if shard.prepend_axis_num else None
        whole = initial_tensor(config.train.seed, table[shard.key], layer)
        assert whole.shape == shard.global_shape[shard.prepend_axis_num :], shard
        local = whole[shard.global_slice()[shard.prepend_axis_num :]]
        with torch.no_grad():
            shard.data.copy_(local)


def initial_tensor(seed: int, parameter: Parameter, layer: int | None) -> Tensor:
    """The whole fp32 tensor that `parameter` begins as, whatever rank asks.

    Args:
        layer: layer of the tensor within its transformer block; None outside of one.
    """
    if isinstance(parameter.initial, Constant):
        tensor = torch.full(parameter.shape, parameter.initial.value)
    else:
        generator = _generator(seed, parameter.key, layer)
        tensor = torch.empty(parameter.shape)
        tensor.normal_(0, parameter.initial.deviation, generator=generator)
    if parameter.zero_heads is not None:
        parameter.zero_heads.of(tensor).zero_()
    return tensor


def _generator(seed: int, key: str, layer: int | None) -> torch.Generator:
    name = f"{seed}:{key}:{layer}"
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
