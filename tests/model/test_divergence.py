"""The divergence from a teacher against torch's own, in 64 bits, with its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("num_teacher_rows", [40, 32, 48])
def test_value_and_gradient_are_torchs(
    parallel, measure, temperature: float, num_teacher_rows: int
):
    from nvlm.model.parts.divergence import divergence

    generator = torch.Generator().manual_seed(num_teacher_rows)
    logits = 3 * torch.randn(1, 7, 40, generator=generator)
    teacher = 3 * torch.randn(1, 7, num_teacher_rows, generator=generator)
    weights = torch.rand(1, 7, generator=generator)
    found_logits = logits.clone().requires_grad_()
    found = divergence(found_logits, teacher, temperature, parallel.groups.tp)
    (found * weights).sum().backward()

    exact = logits.double().requires_grad_()
    # Rows that the student lacks are left out, those that the teacher lacks have no share.
    known = min(40, num_teacher_rows)
    target = torch.zeros(1, 7, 40, dtype=torch.float64)
    target[..., :known] = (teacher.double()[..., :known] / temperature).softmax(-1)
    log_shares = (exact / temperature).log_softmax(-1)
    expected = functional.kl_div(log_shares, target, reduction="none").sum(-1) * temperature**2
    (expected * weights).sum().backward()
    assert found_logits.grad is not None and exact.grad is not None
    what = f"divergence from a teacher, temperature {temperature}, {num_teacher_rows} rows"
    measure(what, "torch in fp64", float((found - expected).detach().abs().max()), 1e-5)
    gradients = float((found_logits.grad - exact.grad).abs().max())
    measure(f"gradient of the {what}", "torch in fp64", gradients, 1e-6)
