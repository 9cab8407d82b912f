"""The router's two losses, weighed alike at every process layout and length of padding.

What is wrong: gradients of a loss per token are divided by the step's trained tokens. Megatron-core
0.16.1 therefore multiplies a router's losses by the number of this rank's tokens, which is another:
nothing is trained of prompts and images, so that the losses weigh more the less of a batch is
answers; and with sequence parallelism a rank has a part of the tokens, so that at tensor-parallel
size 2 they weigh half.
What is done: with n tokens of a micro-batch, padding not counted, its losses are n times their
mean, whoever has which tokens; and `gradient_scale`, the step's trained tokens by all its tokens,
makes that a mean over the step beside the mean loss. Sums for the log are kept in `RouterLosses`,
not in Megatron-core's tracker.
When the pin moves: `TopKRouter._apply_aux_loss`, `apply_z_loss`, and what they multiply by with
`calculate_per_token_loss`; and what a mask's True means (padding, in the code of 0.16.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import (
    MoEAuxLossAutoScaler,
    switch_load_balancing_loss_func,
)
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

# What `RouterLosses.sums` counts.
LOAD_BALANCE, Z, TOKENS = range(3)


class RouterLosses:
    """What the routers of a model chunk have to say of a step, and how much they weigh in it."""

    def __init__(self) -> None:
        # The step's trained tokens by its tokens without padding, a number or a tensor [].
        self.gradient_scale: float | Tensor = 1.0
        # This rank's part of the sums, over its layers and its tokens [3] fp64, of both losses
        # (each token counts the mean of its micro-batch) and of tokens.
        self.sums: Tensor | None = None

    def begin_step(self, gradient_scale: float | Tensor) -> None:
        self.gradient_scale, self.sums = gradient_scale, None

    def add(self, index: int, value: Tensor) -> None:
        if self.sums is None:
            self.sums = torch.zeros(3, dtype=torch.float64, device=value.device)
        self.sums[index] += value.detach()


class Router(TopKRouter):
    """Megatron-core's, with these losses."""

    losses: RouterLosses

    def apply_z_loss(self, logits: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """`logits` [tokens, experts]; `padding_mask` [tokens], True for padding."""
        weight = self.config.moe_z_loss_coeff or 0.0
        # Without a gradient it is a validation, or a pass that is run again for its gradient.
        if not (self.training and torch.is_grad_enabled()):
            return logits
        squares = torch.logsumexp(logits.float(), dim=-1).square()
        valid = torch.ones_like(squares) if padding_mask is None else (~padding_mask).float()
        z_loss = (squares * valid).sum()
        self.losses.add(Z, z_loss)
        self.losses.add(TOKENS, valid.sum())
        return MoEAuxLossAutoScaler.apply(logits, z_loss * (weight * self.losses.gradient_scale))

    def _apply_aux_loss(
        self,
        probs: Tensor,
        scores_for_aux_loss: Tensor,
        routing_map: Tensor,
        with_padding_mask: bool = False,
    ) -> Tensor:
        """All [tokens, experts]; scores and map are zero for padding."""
        tokens_per_expert = routing_map.sum(dim=0).float()
        # Tokens of a micro-batch are here and, with sequence parallelism, on other tensor ranks.
        if self.tp_cp_group.size() > 1:
            dist.all_reduce(tokens_per_expert, group=self.tp_cp_group)
        num_tokens = (tokens_per_expert.sum() / self.topk).clamp(min=1)
        # Of this rank's tokens; ranks' parts add up to the loss.
        loss = num_tokens * switch_load_balancing_loss_func(
            probs=scores_for_aux_loss,
            tokens_per_expert=tokens_per_expert,
            total_num_tokens=num_tokens,  # type: ignore[arg-type]
            topk=self.topk,
            num_experts=self.num_experts,  # type: ignore[arg-type]
            moe_aux_loss_coeff=1.0,
        )
        self.losses.add(LOAD_BALANCE, loss)
        weight = self.config.moe_aux_loss_coeff * self.losses.gradient_scale  # type: ignore[operator]
        return MoEAuxLossAutoScaler.apply(probs, loss * weight)

    def is_aux_loss_enabled(self) -> bool:
        """Also with a weight of 0, for the log."""
        return True


def router_builder(losses: RouterLosses) -> Callable[..., Router]:
    """What builds a layer's router as Megatron-core asks for it."""

    def build(**arguments: Any) -> Router:
        router = Router(**arguments)
        router.losses = losses
        return router

    return build
