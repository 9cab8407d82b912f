"""Whether a run fits the GPUs that it is started on, asked before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from nvlm.config.checks import check_world_size
from nvlm.config.schema import RunConfig
from nvlm.errors import ConfigError
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS, DEFAULT_CARD
from nvlm.plan.layout import with_stage_layers
from nvlm.plan.stage_bytes import StageBytes, stage_bytes
from nvlm.plan.work import largest_work


def check_fit(
    config: RunConfig, world_size: int, memory_bytes: int, teacher: RunConfig | None = None
) -> None:
    """Refuse a run that by the plan's arithmetic takes more than a GPU has.

    Args:
        memory_bytes: of each GPU, in all.
        teacher: the configuration of the checkpoint that `train.distill` names.

    Raises:
        ConfigError: a pipeline stage does not fit.
    """
    config, data_size = with_stage_layers(config), check_world_size(config, world_size)
    card = replace(CARDS[DEFAULT_CARD], memory_bytes=memory_bytes)
    assumptions, work = assumptions_for(card), largest_work(config)
    for stage in range(config.parallel.pipeline):
        needed = stage_bytes(config, stage, data_size, work, assumptions, teacher=teacher)
        if needed.peak > memory_bytes:
            raise ConfigError(
                f"a GPU of pipeline stage {stage} would need {_gigabytes(needed.peak)} and has "
                f"{_gigabytes(memory_bytes)}: {_describe(needed)}. `nvlm plan CONFIG --gpus "
                f"{world_size} --search` ranks layouts that fit; --force trains all the same"
            )


def _describe(needed: StageBytes) -> str:
    parts = {
        "weights": needed.parameters,
        "gradients": needed.gradients,
        "optimizer": needed.optimizer,
        "activations": needed.activations,
        "other tensors": needed.tiles + needed.logits + needed.buffers,
        "libraries": needed.overhead,
    }
    if needed.teacher:
        parts["the teacher's weights"] = needed.teacher
    return ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts.items())


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
