"""The gradients' norm without asking the device once for each of them.

What is wrong: where neither Transformer Engine nor Apex is installed, Megatron-core 0.16.1 makes a
tensor of the gradients' norms by reading one after the other into host memory, and so waits for the
device hundreds of times per step.
What is done: the same norms stay where they are until there is only one number.
When the pin moves: `local_multi_tensor_l2_norm`, and who else takes it besides `clip_grads`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def use_norm_on_device() -> None:
    """Replace Megatron-core's norm of many tensors, where it has no fused one."""
    from megatron.core.optimizer import clip_grads
    from megatron.core.utils import local_multi_tensor_l2_norm

    if clip_grads.l2_norm_impl is local_multi_tensor_l2_norm:
        clip_grads.l2_norm_impl = _norm_of_all


def _norm_of_all(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], per_tensor: bool, *_
) -> tuple[Tensor, None]:
    """L2 norm [1] in fp32 of all tensors together; signature of Apex's `multi_tensor_l2norm`."""
    assert not per_tensor
    (tensors,) = tensor_lists
    norms = torch.stack(torch._foreach_norm(tensors))
    return torch.linalg.vector_norm(norms.float()).reshape(1), None
