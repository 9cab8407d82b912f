"""Matrices beside adapters that are held in 4 bits (QLoRA, arXiv 2305.14314, section 3).

A matrix is cut into blocks of 64 numbers along its rows. Of each block the largest magnitude is
kept in fp32, and of each number the nearest of the 16 values of NF4 (appendix E), which are
quantiles of a normal distribution between -1 and 1. bitsandbytes packs and unpacks them. Passes
unpack a matrix for its product, forwards and again backwards, and keep nothing.

First values are rounded to what the blocks can hold (`round_matrices`), which is what the model
then has; packing them (`pack_matrices`) loses nothing more. So a checkpoint, which holds the values
in `train.precision` like any other, is the same model, and blocks that lie within a rank's part of
a row are the same at every layout.

Shape suffixes: s tokens, o rows of the matrix that this rank holds, i its inputs here.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor, nn
from torch.nn import functional

from nvlm.config.adapters import NF4_BLOCK
from nvlm.config.schema import RunConfig
from nvlm.model.parts.names import named_modules
from nvlm.sizes.adapters import quantized

_KIND = {"blocksize": NF4_BLOCK, "quant_type": "nf4"}


class Nf4Matrix:
    """The numbers of a matrix [o, i], packed."""

    def __init__(self, matrix_oi: Tensor):
        from bitsandbytes.functional import quantize_4bit  # type: ignore[import-not-found]

        assert matrix_oi.shape[1] % NF4_BLOCK == 0, matrix_oi.shape
        self.packed, self._state = quantize_4bit(matrix_oi.contiguous(), **_KIND)

    def unpacked(self) -> Tensor:
        """[o, i], in the type that the matrix had."""
        from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]

        return dequantize_4bit(self.packed, self._state)


class _Product(torch.autograd.Function):
    """The input times the matrix; of the matrix there is no gradient."""

    @staticmethod
    def forward(ctx: Any, input_si: Tensor, matrix: Nf4Matrix) -> Tensor:
        ctx.matrix = matrix
        return functional.linear(input_si, matrix.unpacked())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient_so,) = gradients
        return gradient_so @ ctx.matrix.unpacked(), None


@torch.no_grad()
def round_matrices(model: nn.Module, config: RunConfig) -> None:
    """Give the matrices of the bare chunk `model` that are to be in NF4 the values it has."""
    for linear in _linears(model, config):
        linear.weight.copy_(Nf4Matrix(linear.weight).unpacked())


@torch.no_grad()
def pack_matrices(model: nn.Module, config: RunConfig) -> None:
    """Hold them packed from here on; they are frozen, and their values remain what they are."""
    for linear in _linears(model, config):
        assert not linear.weight.requires_grad
        matrix = Nf4Matrix(linear.weight)
        linear.nf4 = matrix
        linear.weight = nn.Parameter(matrix.packed, requires_grad=False)
        linear._forward_impl = partial(_forward, matrix)
        linear.register_state_dict_post_hook(_put_values)


def values_of(linear: Any) -> Tensor:
    """The matrix of a linear layer, packed or not."""
    matrix = getattr(linear, "nf4", None)
    return linear.weight if matrix is None else matrix.unpacked()


def _linears(model: nn.Module, config: RunConfig) -> Iterator[Any]:
    wanted = {adapter.module for adapter in quantized(config)}
    for name, linear in [*named_modules(model)] if wanted else []:
        if name in wanted:
            assert isinstance(linear, ColumnParallelLinear | RowParallelLinear), name
            yield linear


def _forward(
    matrix: Nf4Matrix,
    input: Tensor,
    *,
    bias: Tensor | None,
    allreduce_dgrad: bool,
    sequence_parallel: bool,
    tp_group: Any,
    **_: Any,
) -> Tensor:
    """What Megatron-core's linear layers call with their input, in place of its products."""
    if sequence_parallel:
        input = gather_from_sequence_parallel_region(
            input, tensor_parallel_output_grad=True, group=tp_group
        )
    elif allreduce_dgrad:
        input = copy_to_tensor_model_parallel_region(input, group=tp_group)
    output = _Product.apply(input, matrix)
    return output if bias is None else output + bias


def _put_values(linear: Any, state: dict[str, Any], prefix: str, _: Any) -> None:
    """What a checkpoint gets of a packed matrix: its values, on the host, where there is room."""
    values = linear.nf4.unpacked()
    state[f"{prefix}weight"] = torch.empty(values.shape, dtype=values.dtype).copy_(values)
