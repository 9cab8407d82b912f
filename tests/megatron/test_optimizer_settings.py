"""Why settings are put back after loading: plain Megatron-core takes the checkpoint's."""

from __future__ import annotations

import torch
from helpers import small_model
from helpers.optimizer_parts import read, sharded_state, take_step, with_optimizer, written

from nvlm.megatron.optimizer_settings import load_optimizer_state


def test_rates_of_the_checkpoint_would_be_taken(parallel, tmp_path):
    before = small_model.small_config("train.optimizer.lr=0.5", "train.optimizer.beta2=0.9")
    after = small_model.small_config("train.optimizer.lr=0.25", "train.optimizer.beta2=0.8")
    model, optimizer = with_optimizer(before, parallel)
    take_step(model, optimizer)
    folder = written(tmp_path / "checkpoint", sharded_state(model, optimizer))

    def resumed(load) -> tuple[float, float, int, float]:
        """Rate, beta and step count of a new optimizer, and its first moments' sum."""
        model, optimizer = with_optimizer(after, parallel)
        load(optimizer, read(folder, sharded_state(model, optimizer, is_loading=True))["optimizer"])
        (group, *_) = optimizer.param_groups
        (inner,) = optimizer.chained_optimizers
        moments = [state["exp_avg"].abs().sum() for state in inner.optimizer.state.values()]
        return group["max_lr"], group["betas"][1], group["step"], float(torch.stack(moments).sum())

    plain = resumed(lambda optimizer, state: optimizer.load_state_dict(state))
    ours = resumed(load_optimizer_state)
    assert plain[:3] == (0.5, 0.9, 1)
    assert ours[:3] == (0.25, 0.8, 1)
    assert ours[3] == plain[3] > 0
