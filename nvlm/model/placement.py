"""The check, at every start, that a pipeline stage holds what belongs on it and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from nvlm.config.schema import RunConfig
from nvlm.model.parts.names import named_parameters
from nvlm.parallel.groups import Parallel
from nvlm.sizes.pipeline import stage_shapes


def check_stage(chunks: Sequence[nn.Module], config: RunConfig, parallel: Parallel) -> None:
    """Compare the parameters of this process, name by name, with those the configuration implies.

    Raises:
        AssertionError: a parameter is on another stage than it should be, or has another size.
    """
    stage = parallel.pipeline_rank
    expected = {name: math.prod(shape) for name, shape in stage_shapes(config, stage).items()}
    found = {}
    for name, parameter in named_parameters(chunks):
        assert name not in found, f"pipeline stage {stage} holds {name} twice"
        is_split = getattr(parameter, "tensor_model_parallel", False)
        found[name] = parameter.numel() * (parallel.tensor_size if is_split else 1)
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    assert not differing, (
        f"pipeline stage {stage} holds {sum(found.values())} parameters, its configuration implies "
        f"{sum(expected.values())}; they differ in {len(differing)}: {', '.join(differing[:8])}"
    )
