"""What a training writes is what it goes on from, and damage is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.rates import LR, PATTERNS, group_of, make_config
from helpers.small_runs import STEPS, stage_config
from helpers.spawn import metrics

from nvlm.model.parts.names import named_parameters
from nvlm.train.freezing import multipliers
from nvlm.train.optim import build_optimizer, build_scheduler, learning_rate, wrap_data_parallel


def restored(saved, config, model, parallel):
    """A new optimizer that `saved` was loaded into, and its scheduler at the same step."""
    from nvlm.train.checkpoint import load_training_state

    factors = multipliers([model], config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    load_training_state(saved, chunks, optimizer, scheduler, parallel)
    return optimizer, scheduler


def test_a_checkpoint_keeps_groups_apart_and_takes_new_rates(model, parallel, tmp_path):
    from nvlm.model.nvlm_d import build_model
    from nvlm.train.checkpoint import save_training_state

    config = make_config(*PATTERNS, f"run.dir={tmp_path}")
    factors = multipliers([model], config, parallel)
    chunks = wrap_data_parallel([model], parallel)
    optimizer = build_optimizer(chunks, config, factors, parallel)
    scheduler = build_scheduler(optimizer, config)
    scheduler.step(increment=3)
    for parameter in model.parameters():
        parameter.main_grad.fill_(1e-3)
    optimizer.step()
    progress = {"step": 3, "counters": {}, "data_state": {}}
    saved = save_training_state(config, chunks, optimizer, scheduler, progress, parallel)
    before = {
        name: (group_of(optimizer, p)["lr"], group_of(optimizer, p)["weight_decay"])
        for name, p in named_parameters([model])
    }

    again = build_model(config, parallel)
    optimizer, _ = restored(saved, config, again, parallel)
    for name, parameter in named_parameters([again]):
        group = group_of(optimizer, parameter)
        assert (group["lr"], group["weight_decay"]) == before[name], name
        assert group["step"] == 1

    # A resumed run may be given other rates: they hold, whatever the checkpoint's groups say.
    other = make_config(*PATTERNS, f"train.optimizer.lr={2 * LR}", "train.optimizer.beta2=0.5")
    again = build_model(other, parallel)
    optimizer, scheduler = restored(saved, other, again, parallel)
    parameter = again.vision_projection.mlp.linear_fc1.weight
    group = group_of(optimizer, parameter)
    assert group["max_lr"] == LR  # twice the rate, half by pattern
    assert group["lr"] == pytest.approx(learning_rate(scheduler, other) / 2)
    assert group["betas"] == (0.9, 0.5)


def test_a_checkpoint_with_changed_bytes_is_not_gone_on_from(demo_data: Path, tmp_path: Path):
    """The one before is used, and what was there is kept aside."""
    from nvlm.train.fit import train

    def config(steps: int):
        steps_of_run = (
            f"train.steps={steps}",
            "checkpoint.every=1",
            "train.schedule.decay_steps=99",
        )
        return stage_config("sft", demo_data, tmp_path, "random", *steps_of_run)

    train(config(STEPS))
    run = Path(config(STEPS).run.dir)
    truth = [record["loss"] for record in metrics(run)]
    (written, *_) = sorted((run / "checkpoints" / "step_00000002").glob("*.distcp"))
    data = bytearray(written.read_bytes())
    data[len(data) // 2] ^= 1
    written.write_bytes(data)
    train(config(STEPS + 1))
    assert [record["loss"] for record in metrics(run)][:STEPS] == truth
    assert [record["step"] for record in metrics(run)] == [1, 2, 3]
    assert (run / "checkpoints" / "step_00000002.replaced").is_dir()
    assert (run / "checkpoints" / "step_00000003").is_dir()


def test_another_model_or_freezing_is_refused(demo_data: Path, tmp_path: Path):
    from nvlm.errors import CheckpointError
    from nvlm.train.fit import train

    train(stage_config("sft", demo_data, tmp_path, "random", "train.steps=1"))
    for override, message in (
        (
            "model.language.ffn_hidden_size=96",
            r"model\.language\.ffn_hidden_size is \d+ there and 96",
        ),
        ("stage.freeze=[]", r"trained with stage\.freeze \['vision_model\.\*'\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            train(stage_config("sft", demo_data, tmp_path, "random", override))
