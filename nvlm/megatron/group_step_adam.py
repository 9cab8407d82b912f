"""An AdamW that counts its steps in the parameter group, as NVIDIA's fused ones do.

What is wrong: where neither Transformer Engine nor Apex is installed, Megatron-core 0.16.1 takes
torch's AdamW. That one counts steps per parameter, which the distributed optimizer cannot carry
from one layout to another: a run saves, and fails as it is resumed.
What is done: without a GPU, Megatron-core gets this AdamW in the place of `Adam` and takes it for a
fused one.
When the pin moves: the names `Adam`, `USING_PYTORCH_OPTIMIZER` and `HAVE_APEX_OR_TE`, and whether
`DistributedOptimizer.state_dict` still looks for one `step` in the state of all parameters.
"""

from __future__ import annotations

from typing import Any

import torch


def use_group_step_adam() -> None:
    """Let Megatron-core's optimizers be built on `GroupStepAdamW`."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    optimizer.Adam = distrib_optimizer.Adam = GroupStepAdamW
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True


class GroupStepAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) with the arithmetic of `torch.optim.AdamW`."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **_: Any):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            group["step"] = step = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            bias1, bias2 = 1 - beta1**step, 1 - beta2**step
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                gradient = parameter.grad
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                state["exp_avg"].lerp_(gradient, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = (state["exp_avg_sq"] / bias2).sqrt_().add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / bias1)
