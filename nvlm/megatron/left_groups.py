"""Process groups of a layout, left for those of another.

What is wrong: Megatron-core 0.16.1 forgets its groups in `destroy_model_parallel` and leaves them
with torch, where each keeps its communicator: on a GPU hundreds of megabytes, for each stage of
training that a process runs.
What is done: they are destroyed. Megatron-core's own list of them has those of this process.
When the pin moves: `destroy_model_parallel` and `_global_process_group_list` in
megatron/core/parallel_state.py.
"""

from __future__ import annotations


def leave_model_parallel() -> None:
    """Destroy the groups that `initialize_model_parallel` made; every rank calls this.

    No rank may have a collective of theirs under way. Does nothing where there are none.
    """
    import torch.distributed as dist
    from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return
    # None stands for the group of all.
    groups = [group for group in parallel_state._global_process_group_list or [] if group]
    parallel_state.destroy_model_parallel()
    for group in groups:
        dist.destroy_process_group(group)
