"""The check, at every start, that a pipeline stage holds what belongs on it and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from nvlm.config.schema import RunConfig
from nvlm.model.parts.names import is_expert, named_parameters
from nvlm.parallel.groups import Parallel
from nvlm.rows import Shape
from nvlm.sizes.pipeline import stage_parameters


@dataclass(frozen=True)
class _Held:
    """A parameter as one process holds it."""

    shape: Shape
    split_axis: int | None


def check_stage(chunks: Sequence[nn.Module], config: RunConfig, parallel: Parallel) -> None:
    """Compare the parameters of this process, name by name, with those the configuration implies.

    Raises:
        AssertionError: a parameter is on another stage than it should be, or has another shape, or
            is split over the tensor-parallel ranks along another axis.
    """
    stage, tensor_size = parallel.pipeline_rank, parallel.tensor_size
    expected = {
        # Where one process has all of a tensor, marks of splitting mean nothing.
        name: _Held(row.local_shape(tensor_size), row.split_axis if tensor_size > 1 else None)
        for name, row in stage_parameters(config, stage, parallel.expert_rank).items()
    }
    found: dict[str, _Held] = {}
    for name, parameter in named_parameters(chunks):
        assert name not in found, f"pipeline stage {stage} holds {name} twice"
        found[name] = _Held(tuple(parameter.shape), split_axis(parameter, tensor_size))
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    assert not differing, (
        f"pipeline stage {stage} holds {_size(found)} parameters per process, its configuration "
        f"implies {_size(expected)}; they differ in {len(differing)}: {', '.join(differing[:8])}"
    )


def split_axis(parameter: nn.Parameter, tensor_size: int) -> int | None:
    """The axis that Megatron-core marked as split over the tensor-parallel ranks."""
    if tensor_size == 1 or not getattr(parameter, "tensor_model_parallel", False):
        return None
    if is_expert(parameter):
        return None  # marked for the gradient norm alone
    return parameter.partition_dim  # type: ignore[attr-defined]


def _size(held: dict[str, _Held]) -> int:
    return sum(math.prod(parameter.shape) for parameter in held.values())
