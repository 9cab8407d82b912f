"""Megatron-core's distributed data parallelism, distributed optimizer and schedule."""

from __future__ import annotations

import torch

from nvlm import platform
from nvlm.config.schema import RunConfig
from nvlm.parallel.groups import Parallel

PARAMETER_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def wrap_data_parallel(model, parallel: Parallel):
    """The model with gradient buffers (fp32) that are reduce-scattered over the data ranks."""
    from megatron.core.distributed import (
        DistributedDataParallel,
        DistributedDataParallelConfig,
        finalize_model_grads,
    )

    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=True
    )
    # The schedules call this after the last micro-batch: gradients are summed over data ranks and,
    # with sequence parallelism, norms' over tensor ranks, then divided by the step's tokens.
    model.config.finalize_model_grads_func = finalize_model_grads
    return DistributedDataParallel(model.config, settings, model, pg_collection=parallel.groups)


def build_optimizer(model, config: RunConfig, multipliers: dict[str, float], parallel: Parallel):
    """Distributed AdamW over the trainable parameters of `model` (as wrapped).

    Biases, norms and other vectors have no weight decay, as is standard in Megatron-core.
    `multipliers` maps names of the bare model's parameters to factors on the learning rate.
    """
    from megatron.core.optimizer import (
        OptimizerConfig,
        get_megatron_optimizer,
        get_standard_config_overrides,
    )
    from megatron.core.optimizer.optimizer_config import ParamKey
    from megatron.core.optimizer_param_scheduler import ParamGroupOverride

    wanted = config.train.optimizer
    dtype = PARAMETER_DTYPES[config.train.precision]
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
    overrides = dict(get_standard_config_overrides(settings))
    for factor in sorted(set(multipliers.values()) - {1.0}):
        names = tuple(f"*{name}" for name, value in multipliers.items() if value == factor)
        # Megatron-core's annotation admits one name; its code takes any number.
        key = ParamKey(name=names)  # pyright: ignore[reportArgumentType]
        rates = {"max_lr": wanted.lr * factor, "min_lr": wanted.min_lr * factor}
        overrides[key] = ParamGroupOverride(**rates)
    return get_megatron_optimizer(
        settings,
        [model],
        config_overrides=overrides,
        pg_collection=parallel.groups,
        **platform.current().optimizer_kwargs(),
    )


def build_scheduler(optimizer, config: RunConfig):
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


def learning_rate(scheduler, config: RunConfig) -> float:
    """The schedule's present rate, before any module's own factor."""
    wanted = config.train.optimizer
    return scheduler.get_lr({"max_lr": wanted.lr, "min_lr": wanted.min_lr})
