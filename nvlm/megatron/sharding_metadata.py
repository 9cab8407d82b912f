"""How the distributed optimizer's state is laid out in a checkpoint, made anew each time.

What is wrong: Megatron-core 0.16.1 writes process groups into the dictionary that it is given. A
constant handed to it twice brings back groups that no longer exist.
What is done: every call gets a dictionary of its own.
When the pin moves: `ensure_metadata_has_dp_cp_group` in megatron/core/transformer/utils.py.
"""

from __future__ import annotations


def sharding_metadata() -> dict[str, str | bool]:
    """For a form that loads at any data-, tensor-, pipeline- or expert-parallel size."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        # The state of a parameter is named by the parameter, not by which optimizer has it.
        "chained_optim_avoid_prefix": True,
    }
