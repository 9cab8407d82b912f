"""Warnings that mean nothing to a user of this program.

What is wrong: Megatron-core 0.16.1 warns about what it lacks, about default values of its own, and
about torch functions that it calls by old names.
What is done: these messages, and no others, are ignored.
When the pin moves: remove those that no longer exist; tests/megatron/test_known_warnings.py finds
them.
"""

from __future__ import annotations

import warnings

KNOWN_WARNINGS = (
    # At import, where Transformer Engine and Apex are not installed: without a GPU they cannot be,
    # and beside one the start-up line names the layers' implementation.
    r"Transformer Engine and Apex are not installed",
    r"Apex is not installed",
    # About its own default value.
    r"full scope is deprecated",
    # Where the core attention is recomputed; docs/training.md says the same.
    r"If you are using transformer_engine as the transformer implementation",
    # It looks at `.grad` of views of its gradient buffers.
    r"The \.grad attribute of a Tensor that is not a leaf Tensor",
    # About the order of kernels on a GPU; the platform sets the variable there.
    r"When using async grad allreduce it is recommended",
    # It calls collectives by names that torch 2.13 renamed.
    r"`torch\.distributed\..*` is deprecated",
    # Its distributed checkpoints use torch's older sharded tensors.
    r"Please use DTensor instead and we are deprecating ShardedTensor",
    r"`load_state_dict` is deprecated and will be removed",
)


def ignore_known_warnings() -> None:
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
