"""How Hugging Face tensors are laid out in a Megatron-core tensor, and back.

Shape suffixes: h heads, d channels per head, g query groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvlm.convert.rules import Layout
from nvlm.rows import Parameter


def stacked(num_parts: int) -> Layout:
    """Equally many rows of each Hugging Face tensor, one below the other."""
    return Layout(
        lambda tensors: torch.cat(list(tensors)),
        lambda tensor: [part.clone() for part in tensor.chunk(num_parts)],
        is_stack=True,
    )


def padded_heads(parameter: Parameter, num_stored: int, num_hf_heads: int) -> Layout:
    """Zero heads appended to those that Hugging Face has, along the axis of the heads."""
    assert parameter.zero_heads is not None
    axis = parameter.zero_heads.axis
    size = parameter.shape[axis]
    hf_size = size // num_stored * num_hf_heads
    return Layout(
        lambda tensors: _pad(tensors[0], axis, size),
        lambda tensor: [tensor.narrow(axis, 0, hf_size).clone()],
    )


def interleaved_heads(parameter: Parameter, num_stored: int, num_hf_heads: int) -> Layout:
    """Rows [all q, all k, all v] <-> per head [q, k, v], zero heads appended."""
    size = parameter.shape[0]
    hf_size = size // num_stored * num_hf_heads
    return Layout(
        lambda tensors: _pad(_interleave_heads(tensors[0], num_hf_heads), 0, size),
        lambda tensor: [_separate_heads(tensor[:hf_size], num_hf_heads)],
    )


def query_groups(num_heads: int, num_groups: int, head_dim: int) -> Layout:
    """q, k and v apart <-> per query group its queries, its key, its value."""
    group_rows = [num_heads // num_groups * head_dim, head_dim, head_dim]
    return Layout(
        lambda tensors: _join_groups(tensors, num_groups),
        lambda tensor: _split_groups(tensor, num_groups, group_rows),
    )


def keys_and_values(num_groups: int, head_dim: int) -> Layout:
    """k and v apart <-> per query group its key, its value."""
    return Layout(
        lambda tensors: _join_groups(tensors, num_groups),
        lambda tensor: _split_groups(tensor, num_groups, [head_dim, head_dim]),
    )


def _pad(tensor: Tensor, axis: int, size: int) -> Tensor:
    """Zeros appended along `axis`, up to `size`."""
    missing = list(tensor.shape)
    missing[axis] = size - tensor.shape[axis]
    return torch.cat([tensor, tensor.new_zeros(missing)], dim=axis)


def _interleave_heads(tensor: Tensor, num_heads: int) -> Tensor:
    blocks_3hd = tensor.view(3, num_heads, -1, *tensor.shape[1:])
    return blocks_3hd.transpose(0, 1).reshape(tensor.shape)


def _separate_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """The inverse of `_interleave_heads`."""
    blocks_h3d = tensor.view(num_heads, 3, -1, *tensor.shape[1:])
    return blocks_h3d.transpose(0, 1).reshape(tensor.shape)


def _join_groups(tensors: Sequence[Tensor], num_groups: int) -> Tensor:
    rest = tensors[0].shape[1:]
    groups = [tensor.view(num_groups, -1, *rest) for tensor in tensors]
    return torch.cat(groups, dim=1).reshape(-1, *rest)


def _split_groups(tensor: Tensor, num_groups: int, group_rows: list[int]) -> list[Tensor]:
    """The inverse of `_join_groups`."""
    rest = tensor.shape[1:]
    parts = tensor.view(num_groups, -1, *rest).split(group_rows, dim=1)
    return [part.reshape(-1, *rest) for part in parts]
