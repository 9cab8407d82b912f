"""The optimizers of the tiny models' pretraining: Muon for matrices, AdamW for the rest.

Muon orthogonalises each update, which is known to save steps when training from scratch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class Optimizers:
    """Linear warm-up and cosine decay to a twentieth for both optimizers."""

    def __init__(
        self, modules: Sequence[nn.Module], num_steps: int, matrix_lr: float, other_lr: float
    ):
        matrices, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                outside = (
                    any(part in name for part in ("embed", "lm_head")) or module is not modules[0]
                )
                (others if parameter.ndim != 2 or outside else matrices).append(parameter)
        self.parameters = matrices + others
        self.optimizers = [
            torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.base_rates = [matrix_lr, other_lr]
        self.num_steps, self.num_warmup_steps = num_steps, min(50, num_steps // 10 + 1)

    def step(self, step: int) -> None:
        """Apply and clear the gradients; `step` counts from 0."""
        warmup = min(1.0, (step + 1) / self.num_warmup_steps)
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / self.num_steps))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, rate in zip(self.optimizers, self.base_rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * warmup * cosine
            optimizer.step()
            optimizer.zero_grad()
