"""Warnings of our dependencies that say nothing to a user of this program."""

from __future__ import annotations

import warnings

_KNOWN = (
    # Megatron-core at import, where Transformer Engine and Apex are not installed: on a CPU they
    # cannot be, and on a GPU the start-up line names the layers' implementation.
    r"Transformer Engine and Apex are not installed",
    r"Apex is not installed",
    # Megatron-core 0.16.1 about its own default value.
    r"full scope is deprecated",
    # Megatron-core where the core attention is recomputed; docs/training.md says the same.
    r"If you are using transformer_engine as the transformer implementation",
    # Megatron-core looks at `.grad` of views of its gradient buffers.
    r"The \.grad attribute of a Tensor that is not a leaf Tensor",
    # About the order of kernels on a GPU; the GPU platform sets the variable.
    r"When using async grad allreduce it is recommended",
    # Megatron-core calls collectives by names that torch 2.13 renamed.
    r"`torch\.distributed\..*` is deprecated",
    # Megatron-core's distributed checkpoints use torch's older sharded tensors.
    r"Please use DTensor instead and we are deprecating ShardedTensor",
    r"`load_state_dict` is deprecated and will be removed",
)


def ignore_known_warnings() -> None:
    for message in _KNOWN:
        warnings.filterwarnings("ignore", message=message)
