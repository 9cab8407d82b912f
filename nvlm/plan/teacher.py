"""Memory of a teacher beside the model that trains (`train.distill`).

Its time is not reckoned, nor what a pass of its layers takes, which is over before the student's.
"""

from __future__ import annotations

from nvlm.config.schema import RecomputeConfig, RunConfig
from nvlm.dtypes import DTYPES
from nvlm.sizes.memory import stage_memory

_WIDE = DTYPES["fp32"].num_bytes


def teacher_weight_bytes(config: RunConfig, teacher: RunConfig) -> int:
    """Of its weights on each process: all of them frozen, at the run's layout.

    Args:
        teacher: the configuration of its checkpoint.
    """
    # Not validated: `nvlm.train.teacher` refuses what does not fit.
    changes = {"freeze": ["*"], "adapters": teacher.stage.adapters}
    frozen = config.model_copy(
        update={
            "model": teacher.model,
            "stage": config.stage.model_copy(update=changes),
            "parallel": config.parallel.model_copy(update={"layout": "even"}),
            "train": config.train.model_copy(
                update={"distill": None, "recompute": RecomputeConfig()}
            ),
        }
    )
    return stage_memory(frozen, 0, 1).parameters


def divergence_bytes(config: RunConfig, teacher: RunConfig) -> int:
    """Of a micro-batch: the teacher's logits, and beside them, in fp32, both distributions and the
    teacher's once more (`nvlm.model.parts.divergence`)."""
    num_tokens = config.train.micro_batch_size * config.stage.sequence_length
    own, theirs = (
        some.model.language.vocab_size // config.parallel.tensor for some in (config, teacher)
    )
    width = DTYPES[config.train.precision].num_bytes
    return num_tokens * (theirs * width + 3 * own * _WIDE)
