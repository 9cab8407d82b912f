"""The optimizer of a pipeline stage where nothing trains, as a checkpoint can hold it.

What is wrong: Megatron-core 0.16.1 gives such a stage (the later ones, while the projector alone is
trained) an empty `param_state`. An entry with tensors is taken apart before the rest of all ranks'
states is compared, an empty one is not: every save warns that the ranks differ.
What is done: the empty entry is left out.
When the pin moves: what `sharded_state_dict` of an optimizer without parameters returns, and how
`save_preprocess` in megatron/core/dist_checkpointing treats empty entries.
"""

from __future__ import annotations


def without_empty_state(optimizer_state: dict) -> dict:
    """The sharded state of an optimizer, without an entry for parameters that it does not have."""
    if all(isinstance(key, int) for key in optimizer_state):  # one for experts, one for the rest
        return {key: without_empty_state(state) for key, state in optimizer_state.items()}
    if optimizer_state.get("param_state"):
        return optimizer_state
    return {key: value for key, value in optimizer_state.items() if key != "param_state"}
