"""How hidden states travel between pipeline stages, with and without virtual stages.

What is wrong: after each exchange Megatron-core 0.16.1 waits for all that the device has to do, for
the sake of a fault in old versions of torch.
What is done: the messages are ordered with the computation on the device, and nobody waits.
When the pin moves: whether `batch_p2p_sync` is still true where nothing is said.

What is wrong: with virtual stages the next stage and the one before may be the same process
(`parallel.pipeline` 2), and Megatron-core 0.16.1 pairs batched sends and receives between two
processes in the wrong order. Its overlapped ones are single, and ordered by the parity of the rank;
but it frees what was sent before the message has left, and where that is read later, other values
are sent (seen with four processes on CPU).
What is done: with virtual stages, messages are overlapped and nothing is freed before its backward
pass. Without, Megatron-core's batched messages are used and outputs are freed.
When the pin moves: `_batched_p2p_ops` in megatron/core/pipeline_parallel/p2p_communication.py, and
in schedules.py whether `deallocate_output_tensor` waits for the send.
"""

from __future__ import annotations

from typing import Any


def message_settings(num_virtual_stages: int) -> dict[str, Any]:
    """Settings of a `TransformerConfig`; `num_virtual_stages` is 1 where there are none."""
    if num_virtual_stages == 1:
        return {"deallocate_pipeline_outputs": True, "batch_p2p_sync": False}
    return {
        "virtual_pipeline_model_parallel_size": num_virtual_stages,
        "overlap_p2p_comm": True,
        "batch_p2p_comm": False,
    }
