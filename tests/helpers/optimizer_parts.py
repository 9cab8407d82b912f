"""A small model with Megatron-core's optimizer, and that optimizer's state on its way to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import small_model
from nvlm.config import RunConfig
from nvlm.parallel.groups import Parallel


def with_optimizer(config: RunConfig, parallel: Parallel, change=lambda model: None):
    """(the bare model, its optimizer); `change(model)` is called before gradient buffers exist."""
    from nvlm.train.freezing import multipliers
    from nvlm.train.optim import build_optimizer, wrap_data_parallel

    model = small_model.build(config, parallel)
    change(model)
    factors = multipliers([model], config, parallel)
    return model, build_optimizer(wrap_data_parallel([model], parallel), config, factors, parallel)


def take_step(model, optimizer) -> None:
    """A step of Adam with gradients of one, so that there are moments."""
    optimizer.zero_grad()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.main_grad.fill_(1.0)
    optimizer.step()


def make_plain(optimizer) -> None:
    """The optimizer's own methods of Megatron-core are called for checkpoints again."""
    (inner,) = optimizer.chained_optimizers
    del inner.sharded_param_state_fully_reshardable
    del inner.load_parameter_state_from_fully_reshardable


def sharded_state(model, optimizer, is_loading: bool = False) -> dict[str, Any]:
    """Model and optimizer as a checkpoint takes them."""
    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    weights = model.sharded_state_dict(metadata=dict(metadata))
    state = optimizer.sharded_state_dict(
        {"model": weights}, is_loading=is_loading, metadata=dict(metadata)
    )
    return {"model": weights, "optimizer": state}


def written(folder: Path, state: dict) -> Path:
    """`state` in a checkpoint of Megatron-core's."""
    from megatron.core import dist_checkpointing

    from nvlm.megatron.in_process_writes import in_process_writer

    folder.mkdir()
    dist_checkpointing.save(
        state,
        str(folder),
        in_process_writer(done=lambda: None),
        content_metadata={"distrib_optim_sharding_type": "fully_reshardable"},
    )
    return folder


def read(folder: Path, state: dict) -> dict[str, Any]:
    from megatron.core import dist_checkpointing

    return dist_checkpointing.load(state, str(folder))  # type: ignore[return-value]
