"""Megatron-core's distributed data parallelism, distributed optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from nvlm import phases, platform
from nvlm.config.schema import RunConfig
from nvlm.dtypes import DTYPES
from nvlm.megatron.gradient_norm import use_norm_on_device
from nvlm.megatron.group_identity import rate_override
from nvlm.megatron.group_step_adam import use_group_step_adam
from nvlm.megatron.optimizer_shares import keep_own_shares
from nvlm.model.parts.names import named_parameters
from nvlm.parallel.groups import Parallel
from nvlm.platform.megatron_calls import OPTIMIZER_ARGUMENTS
from nvlm.train.freezing import Multiplier, has_weight_decay

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    from nvlm.model.nvlm_d import NVLMD


def wrap_data_parallel(
    chunks: list[NVLMD], parallel: Parallel, overlap: bool = False
) -> list[DistributedDataParallel]:
    """Each chunk with gradient buffers (fp32) that are reduce-scattered over the data ranks.

    Args:
        overlap: gradients are reduced while the last micro-batch is still on its way back, and new
            parameters gathered while the next step's first one is on its way: whoever looks at
            parameters between two steps calls `gather_parameters` first.
    """
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap,
    )

    # The schedules call this after the last micro-batch: gradients are summed over data ranks and,
    # with sequence parallelism, norms' over tensor ranks, then divided by the step's tokens.
    # Until then this rank waits for no other data rank.
    def finalize(*arguments: Any, **options: Any) -> None:
        phases.enter(phases.REDUCING)
        chunks[0].gradients_ready = platform.current().moment()
        finalize_model_grads(*arguments, **options)

    for chunk in chunks:
        chunk.config.finalize_model_grads_func = finalize
        chunk.overlaps_data_parallelism = overlap
    wrapped = [
        DistributedDataParallel(chunk.config, settings, chunk, pg_collection=parallel.groups)
        for chunk in chunks
    ]
    if overlap:
        # Of all micro-batches but the last, gradients are added up here.
        waits = [chunk.no_sync for chunk in wrapped]
        for chunk in chunks:
            chunk.config.no_sync_func = waits if len(waits) > 1 else waits[0]  # type: ignore[assignment]
    return wrapped


def gather_parameters(chunks: Sequence[DistributedDataParallel]) -> None:
    """All parameters on every data rank as the last step left them; all ranks call this."""
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def bare(chunks: Sequence[DistributedDataParallel]) -> list[NVLMD]:
    """The model chunks that `wrap_data_parallel` wrapped."""
    return [cast("NVLMD", chunk.module) for chunk in chunks]


def build_optimizer(
    chunks: list[DistributedDataParallel],
    config: RunConfig,
    factors: Mapping[str, Multiplier],
    parallel: Parallel,
) -> MegatronOptimizer:
    """Distributed AdamW over the trainable parameters of the wrapped `chunks`.

    Biases, norms and other vectors have no weight decay, as is standard in Megatron-core.
    `factors` maps names of `nvlm.model.parts.names` to factors on learning rate and weight decay.
    """
    from megatron.core.optimizer import (
        OptimizerConfig,
        get_megatron_optimizer,
        get_standard_config_overrides,
    )

    wanted = config.train.optimizer
    dtype = DTYPES[config.train.precision].torch
    settings = OptimizerConfig(
        optimizer="adam",
        lr=wanted.lr,
        min_lr=wanted.min_lr,
        weight_decay=wanted.weight_decay,
        adam_beta1=wanted.beta1,
        adam_beta2=wanted.beta2,
        adam_eps=wanted.epsilon,
        clip_grad=wanted.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
    overrides = {
        **get_standard_config_overrides(settings),
        **_overrides(bare(chunks), config, factors),
    }
    use_group_step_adam()
    use_norm_on_device()
    optimizer = get_megatron_optimizer(
        settings,
        [*chunks],
        config_overrides=overrides,
        pg_collection=parallel.groups,
        **OPTIMIZER_ARGUMENTS,
    )
    keep_own_shares(optimizer)
    return optimizer


def step_if(optimizer: MegatronOptimizer, is_wanted: Callable[[float], bool]) -> tuple[float, bool]:
    """Megatron-core's step, whose update is made only where `is_wanted(gradient norm)`.

    Without the update, weights and the optimizer's state stay as they are. The norm is that before
    clipping, the same on every rank.

    Returns:
        the norm, and whether the update was made.
    """
    norms: list[float] = []
    measure, update = optimizer.get_grad_norm, optimizer.step_with_ready_grads

    def get_grad_norm() -> float:
        norms.append(float(measure()))
        return norms[0]

    # Its `step` calls these two in turn, with clipping in between.
    optimizer.get_grad_norm = get_grad_norm
    optimizer.step_with_ready_grads = lambda: is_wanted(norms[0]) and update()
    try:
        updated, *_ = cast("tuple", optimizer.step())  # its base class declares nothing
    finally:
        del optimizer.get_grad_norm, optimizer.step_with_ready_grads
    return norms[0], bool(updated)


def _overrides(
    bare_chunks: list[NVLMD], config: RunConfig, factors: Mapping[str, Multiplier]
) -> dict:
    """Megatron-core's parameter-group overrides; it merges the two kinds where both match.

    They select parameters themselves, not names: chunks of one stage use the same names, and the
    patterns were matched with those of the whole model.
    """
    from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate

    wanted = config.train.optimizer
    lr: dict[float, set[int]] = {}
    weight_decay: dict[float, set[int]] = {}
    for name, parameter in named_parameters(bare_chunks):
        lr.setdefault(factors[name].lr, set()).add(id(parameter))
        if has_weight_decay(name, parameter):
            weight_decay.setdefault(factors[name].weight_decay, set()).add(id(parameter))

    def key(what: str, parameters: set[int]) -> ParamKey:
        return ParamKey(predicate=ParamPredicate(what, lambda p: id(p) in parameters))

    return {
        key(f"lr x {factor}", parameters): rate_override(wanted.lr, wanted.min_lr, factor)
        for factor, parameters in lr.items()
        if factor != 1.0
    } | {
        key(f"weight decay x {factor}", parameters): {"wd_mult": factor}
        for factor, parameters in weight_decay.items()
        if factor != 1.0
    }


def build_scheduler(optimizer: MegatronOptimizer, config: RunConfig) -> OptimizerParamScheduler:
    """Linear warm-up then cosine (Megatron-core's scheduler, counted in steps)."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    wanted, schedule = config.train.optimizer, config.train.schedule
    # The cosine needs at least one step after the warm-up, also in runs cut short for a trial.
    decay_steps = max(schedule.decay_steps or config.train.steps, schedule.warmup_steps + 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=wanted.lr,
        min_lr=wanted.min_lr,
        lr_warmup_steps=schedule.warmup_steps,
        lr_decay_steps=decay_steps,
        lr_decay_style="cosine",
        start_wd=wanted.weight_decay,
        end_wd=wanted.weight_decay,
        wd_incr_steps=decay_steps,
        wd_incr_style="constant",
        # A resumed run may have been given another number of steps.
        override_opt_param_scheduler=True,
        use_checkpoint_opt_param_scheduler=False,
    )


def learning_rate(scheduler: OptimizerParamScheduler, config: RunConfig) -> float:
    """The schedule's present rate, before any module's own factor."""
    wanted = config.train.optimizer
    return scheduler.get_lr({"max_lr": wanted.lr, "min_lr": wanted.min_lr})
