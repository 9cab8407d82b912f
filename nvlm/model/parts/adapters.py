"""Adapters beside the linear layers that `stage.adapters` names: LoRA, and DoRA's lengths of rows.

Megatron-core's modules stay what they are, under their names; a hook adds to their output. As the
linear layers do, ranks of a tensor-parallel group share one factor, that along the axis which the
matrix is split on, and hold the other one whole. What they exchange is as wide as the adapter's
rank and not as the hidden states:

    column-parallel   B is split. A's result is the same on all ranks, and its gradient the sum of
                      what each has of it. With sequence parallelism each rank multiplies its own
                      tokens with A, and the results are gathered; A's gradient is then of a rank's
                      tokens only, and summed over ranks with those of the norms.
    row-parallel      A is split. The results are summed; with sequence parallelism each rank keeps
                      the sum for its own tokens, and B's gradient is of these only.

Shape suffixes: s tokens of this rank's input, o rows of the matrix that this rank holds, i its
inputs here, k the rank times the number of parts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.utils import (
    make_sharded_tensor_for_checkpoint,
    make_tp_sharded_tensor_for_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional

from nvlm.config.schema import RunConfig
from nvlm.model.parts.names import named_modules
from nvlm.model.parts.nf4 import values_of
from nvlm.parallel.groups import Parallel
from nvlm.rows import ADAPTER
from nvlm.sizes.adapters import Adapter, by_module


def add_adapters(model: nn.Module, config: RunConfig, parallel: Parallel) -> None:
    """Put the adapters of `config` beside the linear layers of the bare chunk `model`.

    Their weights are unset, like all others.
    """
    wanted = by_module(config)
    for name, linear in [*named_modules(model)] if wanted else []:
        if name in wanted:
            adapter = LowRankAdapter(wanted[name], linear, parallel)
            linear.add_module(ADAPTER, adapter)
            # As a module that is called: what data parallelism gathers late, it waits for then.
            linear.register_forward_hook(adapter)


class LowRankAdapter(nn.Module):
    """Of one linear layer."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    magnitude: nn.Parameter | None

    def __init__(self, place: Adapter, linear: Any, parallel: Parallel):
        """`linear`: Megatron-core's or Transformer Engine's, which the adapter does not hold."""
        super().__init__()
        self.place = place
        self.group = parallel.groups.tp
        self.groups = parallel.groups
        # Whether a rank's tokens are a part of the sequence outside of the linear layer.
        self.sequence_parallel: bool = linear.sequence_parallel
        self.is_column = place.matrix.split_axis == 0
        self.blocks, self.part_rows = place.local_blocks(parallel.tensor_size)
        self.has_bias = _adds_bias(linear)
        self.magnitude = None
        for row in place.parameters():
            key = row.key.rpartition(".")[2]
            shape = row.local_shape(parallel.tensor_size)
            parameter = nn.Parameter(torch.empty(shape, dtype=linear.weight.dtype))
            is_split = row.split_axis is not None
            set_tensor_model_parallel_attributes(parameter, is_split, row.split_axis or 0, 1)
            # Megatron-core sums gradients that are of a rank's own tokens.
            parameter.sequence_parallel = self.sequence_parallel and not is_split  # type: ignore[attr-defined]
            setattr(self, key, parameter)

    def forward(self, linear: Any, inputs: tuple[Tensor, ...], result: tuple[Tensor, Any]) -> Any:
        """A forward hook of the linear layer, which returns its output and a bias to add later."""
        output, later_bias = result
        added = self._product(inputs[0])
        if self.magnitude is None:
            return output + added, later_bias
        factors = self.magnitude / self.row_norms(values_of(linear)).to(self.magnitude.dtype)
        if not self.has_bias:
            return (output + added) * factors, later_bias
        plain = output - linear.bias
        return output + ((plain + added) * factors - plain), later_bias

    def _product(self, input_si: Tensor) -> Tensor:
        """`scale * B @ A` of the input: as the linear layer's output."""
        hidden_sk = functional.linear(input_si, self.lora_a)
        if not self.is_column:
            if self.sequence_parallel:
                hidden_sk = reduce_scatter_to_sequence_parallel_region(hidden_sk, group=self.group)
            else:
                hidden_sk = reduce_from_tensor_model_parallel_region(hidden_sk, group=self.group)
        elif self.sequence_parallel:
            hidden_sk = gather_from_sequence_parallel_region(hidden_sk, group=self.group)
        else:
            hidden_sk = copy_to_tensor_model_parallel_region(hidden_sk, group=self.group)
        hidden_sk = hidden_sk * self.place.settings.scale
        if self.place.num_parts == 1:
            return functional.linear(hidden_sk, self.lora_b)
        parts = zip(
            hidden_sk.chunk(self.place.num_parts, dim=-1), self._of_parts(self.lora_b), strict=True
        )
        return self._joined([functional.linear(hidden, rows) for hidden, rows in parts])

    @torch.no_grad()
    def row_norms(self, weight_oi: Tensor) -> Tensor:
        """Lengths of the rows of W + scale * B @ A, of those that this rank holds, in fp32.

        Gradients do not pass (DoRA, section 4.3). The sum is not made: of its squares' sum, what
        comes of B @ A alone and of both are products of small matrices.
        """
        scale = self.place.settings.scale
        squares_o = torch.linalg.vector_norm(weight_oi, dim=1, dtype=torch.float32).square()
        added = []
        factors = self.lora_a.chunk(self.place.num_parts)
        parts = zip(self._of_parts(weight_oi), self._of_parts(self.lora_b), factors, strict=True)
        for rows, b, a in parts:
            both = (rows @ a.T).float() + scale / 2 * (b.float() @ (a.float() @ a.float().T))
            added.append(2 * scale * (b.float() * both).sum(1))
        squares_o += self._joined(added)
        if not self.is_column and self.group.size() > 1:
            dist.all_reduce(squares_o, group=self.group)
        return squares_o.clamp(min=0).sqrt()

    @torch.no_grad()
    def measure_rows(self, weight: Tensor) -> None:
        """Begin DoRA's lengths as those that the rows of `weight` have."""
        if self.magnitude is not None:
            self.magnitude.copy_(self.row_norms(weight))

    def _of_parts(self, rows_of: Tensor) -> list[Tensor]:
        """The rows of each part, of a tensor whose first axis is the matrix's rows."""
        blocks = rows_of.view(self.blocks, -1, *rows_of.shape[1:])
        return [part.flatten(0, 1) for part in blocks.split(self.part_rows, dim=1)]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """The inverse along the last axis."""
        blocks = [part.unflatten(-1, (self.blocks, -1)) for part in parts]
        return torch.cat(blocks, dim=-1).flatten(-2)

    def sharded(self, prefix: str) -> dict[str, ShardedTensor | ShardedTensorFactory]:
        """Key -> what of the global tensor this rank holds; `prefix` goes before its name there."""
        entries: dict[str, ShardedTensor | ShardedTensorFactory] = {}
        groups = {"tp_group": self.group, "dp_cp_group": self.groups.dp_cp}
        for row in self.place.parameters():
            key = row.key.rpartition(".")[2]
            data = getattr(self, key)
            if row.split_axis is None:
                entry = make_sharded_tensor_for_checkpoint(data, f"{prefix}{row.key}", **groups)
            else:
                entry = make_tp_sharded_tensor_for_checkpoint(
                    data, f"{prefix}{row.key}", row.split_axis, **groups
                )
            if row.split_axis == 0 and self.place.shares_parts:
                entry = apply_swiglu_sharded_factory(entry, ())
            entries[key] = entry
        return entries


def sharded_adapters(model: nn.Module, prefix: str) -> dict[str, Any]:
    """Of all adapters of a chunk: name in its state dict -> `LowRankAdapter.sharded`."""
    return {
        f"{prefix}{name}.{key}": entry
        for name, module in model.named_modules()
        if isinstance(module, LowRankAdapter)
        for key, entry in module.sharded(prefix).items()
    }


def measure_rows(model: nn.Module) -> None:
    """Begin DoRA's lengths of rows, when all other weights are there; every rank calls this."""
    for _, module in named_modules(model):
        adapter = getattr(module, ADAPTER, None)
        if isinstance(adapter, LowRankAdapter):
            adapter.measure_rows(values_of(module))


def _adds_bias(linear: Any) -> bool:
    """Whether its output has its bias in it, instead of returning it beside."""
    bias = getattr(linear, "bias", None)
    if bias is None or not bias.numel():
        return False
    later = linear.te_return_bias if hasattr(linear, "te_return_bias") else linear.skip_bias_add
    return not later
