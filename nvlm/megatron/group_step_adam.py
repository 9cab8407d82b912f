"""An AdamW that counts its steps in the parameter group, as NVIDIA's fused ones do.

What is wrong: where neither Transformer Engine nor Apex is installed, Megatron-core 0.16.1 takes
torch's AdamW. That one counts steps per parameter, which the distributed optimizer cannot carry
from one layout to another: a run saves, and fails as it is resumed.
What is done: there, on every device, Megatron-core gets this AdamW in the place of `Adam` and takes
it for a fused one. On a GPU it is one: torch's fused kernel does the arithmetic.
When the pin moves: the names `Adam`, `USING_PYTORCH_OPTIMIZER` and `HAVE_APEX_OR_TE`, and whether
`DistributedOptimizer.state_dict` still looks for one `step` in the state of all parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def use_group_step_adam() -> None:
    """Let Megatron-core's optimizers be built on `GroupStepAdamW` where it has no fused one."""
    from megatron.core import optimizer
    from megatron.core.optimizer import distrib_optimizer

    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = distrib_optimizer.Adam = GroupStepAdamW
    optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True


def _unhidden(name: str) -> Any:
    return getattr(torch.optim.Optimizer, name).__wrapped__


class GroupStepAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay) with the arithmetic of `torch.optim.AdamW`."""

    # Theirs first load torch's compiler, in order to hide from it: half a second of each start.
    add_param_group = _unhidden("add_param_group")
    state_dict = _unhidden("state_dict")
    load_state_dict = _unhidden("load_state_dict")
    zero_grad = _unhidden("zero_grad")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **_: Any):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
            if not parameters:
                continue
            update = _update_one_by_one if parameters[0].is_cpu else _update_fused
            update(group, parameters, [self.state[p] for p in parameters])


def _update_one_by_one(group: dict, parameters: list[Tensor], states: list[dict]) -> None:
    beta1, beta2 = group["betas"]
    bias1, bias2 = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
    for parameter, state in zip(parameters, states, strict=True):
        gradient = parameter.grad
        assert gradient is not None
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = (state["exp_avg_sq"] / bias2).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / bias1)


def _update_fused(group: dict, parameters: list[Tensor], states: list[dict]) -> None:
    """One kernel for all parameters; it reads the number of the step from the device."""
    beta1, beta2 = group["betas"]
    step = torch.full((), group["step"], dtype=torch.float32, device=parameters[0].device)
    torch._fused_adamw_(
        parameters,
        [parameter.grad for parameter in parameters if parameter.grad is not None],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [step] * len(parameters),
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
    )
