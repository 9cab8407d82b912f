"""Recomputed outputs where Transformer Engine is not installed.

What is wrong: Megatron-core 0.16.1 recomputes norms with Transformer Engine's state of FP8 unless
`fp8` is None, and the default that its layers take is False: selective recomputation of norms ends
in a NameError where Transformer Engine is not installed.
What is done: there the default is None.
When the pin moves: `CheckpointWithoutOutput.__init__` in megatron/core/tensor_parallel/random.py.
"""

from __future__ import annotations


def ask_no_fp8_state() -> None:
    """Let Megatron-core's layers recompute norms without Transformer Engine."""
    from megatron.core.tensor_parallel import random

    if not random.HAVE_TE:
        random.CheckpointWithoutOutput.__init__.__defaults__ = (None,)
