"""Jumps of loss and gradient norm: what counts as one, and what each policy does to a run."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import small_model

from nvlm.batch import StepBatch
from nvlm.config.run_sections import SpikeConfig, TrainConfig
from nvlm.errors import TrainingError
from nvlm.train.events import read_events
from nvlm.train.spikes import SpikeWatch
from nvlm.train.training import Training


def watch(**settings) -> SpikeWatch:
    config = small_model.small_config().train
    return SpikeWatch(TrainConfig(**{**config.model_dump(), "spike": SpikeConfig(**settings)}))


def test_the_rule():
    """Median 10, MAD 1: a spike is more than 10 + 3 x 1.4826."""
    values = [9, 10, 11, 8, 12, 9, 11, 10, 10]
    seen = watch(window=100, deviations=3)
    assert not any(seen.look(value, 1.0) for value in values)
    # A quarter of the window has to be there.
    assert not seen.look(1000.0, 1.0)
    seen = watch(window=9, deviations=3)
    for value in values:
        assert not seen.look(value, 1.0)
    before = copy.deepcopy(seen.state())
    assert not seen.look(14.4, 1.0)
    seen.load_state(before)
    (spike,) = seen.look(14.5, 1.0)
    assert (spike.name, spike.value, spike.median) == ("loss", 14.5, 10)
    assert spike.limit == pytest.approx(14.4478)
    # Downwards is none; values that hardly differ have 5 % of them for a deviation.
    assert not seen.look(-50.0, 1.149)
    (spike,) = seen.look(10.0, 1.151)
    assert spike.name == "grad_norm"


def test_a_loss_that_stays_high_is_the_new_level():
    seen = watch(window=10)
    for number in range(10):
        seen.look(1 + 0.01 * number, 1.0)
    found = [bool(seen.look(100.0 + number, 1.0)) for number in range(10)]
    assert found == [True] * 5 + [False] * 5


class Run:
    """A training of the small model on the same batch, whose ninth is a hundred times as hard."""

    def __init__(self, parallel, folder, *overrides: str):
        config = small_model.small_config(
            "stage.freeze=[]",
            "train.precision=fp32",
            "train.spike.window=8",
            "train.optimizer.lr=1e-5",
            "train.optimizer.min_lr=0",
            f"run.dir={folder}",
            *overrides,
        )
        folder.mkdir(exist_ok=True)
        self.config = config
        self.training = Training(config, parallel, [small_model.build(config, parallel)])
        usual = small_model.batch(config, 1, [60, 20], 2)
        # Other labels have another loss; weights of a step cancel out.
        self.usual = StepBatch([usual], [], {"position": 1})

    def step(self, spiky: bool = False):
        if not spiky:
            return self.training.take_step(self.usual)
        output = self.training.chunks[0].module.language_model.output_layer.weight
        with torch.no_grad():
            output.mul_(100)
        try:
            return self.training.take_step(self.usual)
        finally:
            with torch.no_grad():
                output.div_(100)

    def state(self) -> dict[str, torch.Tensor]:
        weights = dict(self.training.chunks[0].named_parameters())
        tensors = {name: weight.detach().clone() for name, weight in weights.items()}
        (inner,) = self.training.optimizer.chained_optimizers
        for number, state in enumerate(inner.optimizer.state.values()):
            tensors |= {f"{number} {name}": value.clone() for name, value in state.items()}
        steps = [group.get("step", 0) for group in inner.optimizer.param_groups]
        return tensors | {"steps": torch.tensor(steps)}


def test_skip_leaves_everything_but_the_step_and_its_data(parallel, tmp_path):
    run = Run(parallel, tmp_path / "run", "train.on_spike=skip")
    for _ in range(8):
        assert run.step().result.is_updated
    before, rate = run.state(), run.training.scheduler.num_steps
    run.usual.data_state["position"] = 9
    taken = run.step(spiky=True)
    assert not taken.result.is_updated
    assert taken.result.loss > 2 * 7
    # The factor of 100 and back rounds; nothing else may change.
    for name, tensor in run.state().items():
        assert torch.allclose(tensor, before[name], rtol=1e-6, atol=0), name
    assert run.training.scheduler.num_steps == rate
    assert run.training.step == 9
    assert run.training.data_state == {"position": 9}
    (event,) = read_events(tmp_path / "run")
    assert (event.kind, event.step) == ("skip", 9)
    assert "the loss is " in event.text
    assert event.text.endswith("; its update is left out")
    assert event.fields["loss"] == taken.result.loss
    assert run.step().result.is_updated
    assert run.training.scheduler.num_steps == rate + 1


def test_a_resumed_run_skips_the_same_step(parallel, tmp_path, fault):
    """Bit for bit as the uninterrupted one, with the window of before."""
    uninterrupted = Run(parallel, tmp_path / "run", "train.on_spike=skip")
    for _ in range(8):
        uninterrupted.step()
    saved = uninterrupted.training.save()
    resumed = Run(parallel, tmp_path / "run", "train.on_spike=skip")
    resumed.training.load(saved)
    for run in (uninterrupted, resumed):
        assert not run.step(spiky=True).result.is_updated
        assert run.step().result.is_updated
    assert resumed.training.spikes.state() == uninterrupted.training.spikes.state()
    truth = uninterrupted.state()
    for name, tensor in resumed.state().items():
        assert torch.equal(tensor, truth[name]), name
    outcome = "the step's update is left out, also by a resumed run, bit-equal; an event says so"
    fault(what="the loss jumps, train.on_spike: skip", layout="one process", outcome=outcome)


def test_warn_trains_on_and_stop_does_not(parallel, tmp_path, capsys):
    run = Run(parallel, tmp_path / "warn")
    for _ in range(8):
        run.step()
    assert run.step(spiky=True).result.is_updated
    assert "step 9: the loss is " in capsys.readouterr().err
    assert [event.kind for event in read_events(tmp_path / "warn")] == ["spike"]
    run = Run(parallel, tmp_path / "stop", "train.on_spike=stop")
    for _ in range(8):
        run.step()
    before = run.state()
    with pytest.raises(TrainingError, match=r"(?s)step 9: the loss is .*train.on_spike is stop"):
        run.step(spiky=True)
    for name, tensor in run.state().items():
        assert torch.allclose(tensor, before[name], rtol=1e-6, atol=0), name
    assert [event.kind for event in read_events(tmp_path / "stop")] == ["spike"]
