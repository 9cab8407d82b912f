"""How far a student's distribution over the next token is from a teacher's.

The vocabulary may be shared out over tensor-parallel ranks, as Megatron-core's cross entropy has
it. Shape suffixes: t tokens, v rows of this rank, w those of the teacher's logits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

# Of tokens that the teacher has no row for: their probability is zero, and its logarithm finite.
_NEVER = -1e30


def divergence(
    logits_1tv: Tensor, teacher_1tw: Tensor, temperature: float, group: dist.ProcessGroup
) -> Tensor:
    """[1, t] in fp32: temperature^2 KL(teacher || student) of the logits / temperature.

    The square keeps gradients as large as without a temperature (Hinton et al., arXiv 1503.02531,
    section 2). Gradients go to `logits_1tv` alone. Where the two have matrices of different
    numbers of rows, rows that one of them lacks are padding: no token of the tokenizer is there.

    Args:
        group: the tensor-parallel ranks.
    """
    teacher_1tv = _with_rows(teacher_1tw.detach(), logits_1tv.shape[-1], group)
    return _Divergence.apply(logits_1tv, teacher_1tv, temperature, group)  # type: ignore[return-value]


def _with_rows(teacher_1tw: Tensor, num_rows: int, group: dist.ProcessGroup) -> Tensor:
    """The teacher's logits of the tokens that are the student's on this rank."""
    if teacher_1tw.shape[-1] == num_rows:
        return teacher_1tw
    parts = [torch.empty_like(teacher_1tw) for _ in range(group.size())]
    dist.all_gather(parts, teacher_1tw.contiguous(), group=group)
    whole, wanted = torch.cat(parts, -1), num_rows * group.size()
    whole = pad(whole, (0, max(0, wanted - whole.shape[-1])), value=_NEVER)[..., :wanted]
    return whole.chunk(group.size(), -1)[group.rank()]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, teacher: Tensor, temperature: float, group: dist.ProcessGroup
    ) -> Tensor:
        own_log = _log_softmax(logits, temperature, group)
        teacher_log = _log_softmax(teacher, temperature, group)
        shares = teacher_log.exp()
        value = teacher_log.sub_(own_log).mul_(shares).sum(-1)
        dist.all_reduce(value, group=group)
        # d value / d logits = (student - teacher) / temperature
        ctx.save_for_backward(own_log.exp_().sub_(shares))
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        return value * temperature**2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        (difference,) = ctx.saved_tensors
        of_logits = difference * (gradient * ctx.temperature)[..., None]
        return of_logits.to(ctx.dtype), None, None, None


def _log_softmax(logits: Tensor, temperature: float, group: dist.ProcessGroup) -> Tensor:
    """Over all ranks' rows, in fp32; a new tensor, since the loss overwrites its logits."""
    scaled = logits.float() * (1 / temperature)
    largest = scaled.amax(-1, keepdim=True)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    scaled -= largest
    total = scaled.exp().sum(-1, keepdim=True)
    dist.all_reduce(total, group=group)
    return scaled.sub_(total.log_())
