"""Saves in the background that go well, that fail, and that are the best so far."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.rates import make_config
from rich.console import Console

from nvlm.checkpoint_files import changed, find_damage, read_progress
from nvlm.errors import CheckpointError, ConfigError, TrainingError
from nvlm.train.events import read_events


def steps_in(training) -> list[str]:
    """All that is in the run's `checkpoints`, hidden names included, but for links."""
    folder = Path(training.config.run.dir) / "checkpoints"
    return sorted(path.name for path in folder.iterdir() if not path.is_symlink())


def step_names(*steps: int) -> list[str]:
    return [f"step_{step:08d}" for step in steps]


def link(training, name: str) -> str:
    return (Path(training.config.run.dir) / "checkpoints" / name).resolve().name


def take_step(training, step: int) -> None:
    for parameter in training.chunks[0].parameters():
        parameter.main_grad.fill_(1e-3)
    training.optimizer.step()
    training.step, training.data_state = step, {}


@pytest.fixture
def new_training(model, parallel, tmp_path):
    def make(*overrides: str):
        from nvlm.train.training import Training

        config = make_config(f"run.dir={tmp_path}/run", "checkpoint.every=2", *overrides)
        training = Training(config, parallel, [model])
        take_step(training, 1)
        return training

    return make


@contextmanager
def saver_of(training):
    from nvlm.train.saver import saving

    with saving(training, None, Console(quiet=True)) as saver:
        yield saver


@contextmanager
def small_files():
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_loses_nothing_and_ends_the_run_the_second_time(
    new_training, capsys, tmp_path, fault
):
    training = new_training()
    with saver_of(training) as saver:
        saver.save()
        saver.finish()
        with small_files():
            take_step(training, 2)
            assert saver.due()
            saver.save()
            saver.finish()
            said = capsys.readouterr().err
            assert "step_00000002: cannot be written: File too large" in said
            assert " MB)" in said and "the checkpoint before stays" in said
            assert steps_in(training) == step_names(1) and training.last_saved == 1
            assert link(training, "latest") == "step_00000001"
            take_step(training, 3)
            with pytest.raises(CheckpointError, match=r"step_00000003: cannot be .* \(it takes "):
                saver.save()
        assert steps_in(training) == step_names(1)
        failed, *_ = [event for event in read_events(tmp_path / "run") if event.kind != "save"]
        assert (failed.kind, failed.step) == ("save_failed", 2)
        # With space again the save goes on, and then the background is trusted again.
        saver.save()
        take_step(training, 4)
        saver.save()
        assert training.last_saved == 3
    assert training.last_saved == 4
    assert steps_in(training) == step_names(1, 3, 4)
    saves = [event for event in read_events(tmp_path / "run") if event.kind == "save"]
    assert [event.step for event in saves] == [1, 3, 4]
    fault(
        what="the disk is full while a checkpoint is written in the background",
        layout="one process",
        outcome="one line says what it takes; the run goes on, the checkpoint before stays; the "
        "second time the run ends",
    )


def test_a_copy_that_memory_does_not_hold_is_explained():
    from nvlm.train.saver import _host_buffer

    with pytest.raises(TrainingError, match=r"takes 4000000.0 TB of .*: set checkpoint.background"):
        _host_buffer(4 * 10**18)


def test_space_is_looked_at_before_anything_is_written(tmp_path):
    from nvlm.disk_space import check_space

    check_space(tmp_path / "run" / "checkpoints" / "step_00000001", 1)
    with pytest.raises(CheckpointError, match=rf"takes 1020000.0 TB and {tmp_path} has [\d.]+ .B"):
        check_space(tmp_path / "run" / "checkpoints" / "step_00000001", 10**18)


def test_a_parameter_that_is_not_finite_is_not_written(new_training):
    training = new_training()
    parameter = training.chunks[0].module.vision_projection.mlp.linear_fc1.weight
    with torch.no_grad():
        parameter[0, 0] = torch.inf
    with saver_of(training) as saver:
        saver.save()
        with pytest.raises(
            TrainingError, match=r"not finite: vision_projection.*linear_fc1.weight"
        ):
            saver.finish()
    assert not (Path(training.config.run.dir) / "checkpoints").exists()


def test_what_was_begun_is_written_also_where_the_run_fails(new_training, capsys):
    training = new_training()

    def run() -> None:
        with saver_of(training) as saver:
            saver.save()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert "ZeroDivisionError: the run ends once" in capsys.readouterr().err
    assert steps_in(training) == step_names(1)
    checkpoint = Path(training.config.run.dir) / "checkpoints" / "step_00000001"
    assert find_damage(checkpoint) is None and changed(checkpoint) is None


def test_a_checkpoint_says_what_it_is_and_stays_accordingly(new_training):
    training = new_training("checkpoint.keep=1", "checkpoint.keep_every=3", "train.steps=6")
    with saver_of(training) as saver:
        for step in range(1, 7):
            if step > 1:
                take_step(training, step)
            # Every second, and every third one, but for the last, which `end` writes.
            assert saver.due() == (step in (2, 3, 4))
            if saver.due():
                saver.save()
        saver.end()
        saver.end()  # it is there
    assert steps_in(training) == step_names(3, 6)
    folder = Path(training.config.run.dir)
    kinds = [
        (read_progress(folder / "checkpoints" / name) or {})["kind"] for name in step_names(3, 6)
    ]
    assert kinds == ["portable", "portable"]
    assert json.loads((folder / "run.json").read_text())["saved"] == 6


def test_the_best_one_is_saved_kept_and_found_again(new_training):
    wanted = [
        "checkpoint.keep=1",
        "validation.every=1",
        "checkpoint.best=validation/loss",
        "checkpoint.best_is=lower",
        "checkpoint.every=100",
    ]
    training = new_training(*wanted)
    losses = {1: 3.0, 2: 2.0, 3: 2.5, 4: float("nan"), 5: None, 6: 1.9, 7: 2.2}
    with saver_of(training) as saver:
        for step, loss in losses.items():
            if step > 1:
                take_step(training, step)
            saver.observe(None if loss is None else {"validation/loss": loss})
            assert saver.due() == (step in (1, 2, 6))
            if saver.due():
                saver.save()
        with pytest.raises(
            ConfigError, match=r"checkpoint.best validation/loss: .* has validation"
        ):
            saver.observe({"validation/other": 1.0})
        saver.end()
    assert steps_in(training) == step_names(6, 7)
    assert (
        link(training, "best") == "step_00000006" and link(training, "latest") == step_names(7)[0]
    )
    progress = read_progress(Path(training.config.run.dir) / "checkpoints" / "best") or {}
    assert progress["measured"] == {"validation/loss": 1.9}
    with saver_of(training) as saver:
        for loss, is_due in ((1.95, False), (1.8, True)):
            take_step(training, 8)
            saver.observe({"validation/loss": loss})
            assert saver.due() == is_due


def test_a_failed_save_is_not_the_best(new_training):
    training = new_training(
        "validation.every=1", "checkpoint.best=validation/loss", "checkpoint.best_is=higher"
    )
    with saver_of(training) as saver:
        saver.observe({"validation/loss": 1.0})
        saver.save()
        saver.finish()
        take_step(training, 3)
        saver.observe({"validation/loss": 2.0})
        with small_files():
            saver.save()
            saver.finish()
        assert link(training, "best") == "step_00000001"
        take_step(training, 5)
        saver.observe({"validation/loss": 1.5})
        assert saver.due()
        saver.save()
        assert link(training, "best") == "step_00000005"
