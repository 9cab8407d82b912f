"""After which steps a checkpoint is due where the time counts."""

from __future__ import annotations

import pytest

from nvlm.config.run_sections import CheckpointConfig
from nvlm.config.values import seconds_of
from nvlm.train import save_times
from nvlm.train.save_times import SaveTimes


@pytest.mark.parametrize(
    "written, seconds", [("90s", 90), ("30min", 1800), ("1.5 h", 5400), (7, None), ("7", None)]
)
def test_what_is_written_is_steps_or_a_time(written, seconds):
    every = CheckpointConfig(every=written).every
    assert seconds_of(every) == seconds
    assert seconds is not None or every == 7


@pytest.mark.parametrize("written", ["0min", "30 minutes", "2d", "-1h", "1e3s", "0"])
def test_what_is_neither_is_refused(written):
    with pytest.raises(ValueError, match="a number of steps of at least 1, or a time such as"):
        CheckpointConfig(every=written)


@pytest.mark.parametrize("step_seconds", [0.01, 0.3, 7.0, 100.0])
def test_times_are_kept_to_a_step_and_looked_at_seldom(step_seconds, parallel, monkeypatch):
    looks, now = [], [0.0]

    def look(value):
        looks.append(value)
        return value

    monkeypatch.setattr(save_times, "broadcast_object", look)
    times = SaveTimes(CheckpointConfig(every="1min"), 0, True, lambda: now[0])
    due = []
    for step in range(1, round(200 / step_seconds) + 1):
        now[0] += step_seconds
        if times.is_due(step):
            due.append(now[0])
            times.restart(step)
    between = [after - before for before, after in zip([0.0, *due], due, strict=False)]
    assert len(due) == (3 if step_seconds < 60 else 2)
    assert all(seconds + 1e-6 >= 60 and seconds < 60 + step_seconds + 1e-6 for seconds in between)
    assert len(looks) <= 16 * (len(due) + 1)


def test_steps_that_become_slower_are_noticed(parallel):
    now = [0.0]
    times = SaveTimes(CheckpointConfig(every="1min"), 0, True, lambda: now[0])
    for step in range(1, 40):
        now[0] += 1.0 if step <= 5 else 20.0
        if times.is_due(step):
            break
    # Half of the steps that would have fitted came before it looked again.
    assert now[0] < 5 + 20 * 60 / 2


def test_what_is_kept_for_good_is_due_too(parallel):
    times = SaveTimes(CheckpointConfig(every=4, keep_every=6), 0, True)
    assert [step for step in range(1, 13) if times.is_due(step)] == [4, 6, 8, 12]
