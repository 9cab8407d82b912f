"""A resumed run is told what other settings do to its learning rate."""

from __future__ import annotations

import pytest

from nvlm.config import load_config
from nvlm.train.rates import rate_changes

SETTINGS = ["train.optimizer.lr=1e-3", "train.optimizer.min_lr=1e-5", "train.steps=100"]


def config(*overrides: str):
    own = ["train.schedule.warmup_steps=10", "train.schedule.decay_steps=null"]
    return load_config("configs/run/tiny/sft.yaml", [*SETTINGS, *own, *overrides])


@pytest.mark.parametrize(
    "overrides, step, expected",
    [
        ([], 100, []),
        # (1 + cos(pi * 91 / 190)) / 2 of the way from 1e-5 to 1e-3; the run before had ended.
        (
            ["train.steps=200"],
            100,
            [
                "settings: train.steps 100 is now 200",
                "learning rate: 0.000538 at step 101, which was to have 1e-05; it ends with 1e-05 "
                "at step 200, and was to end with 1e-05 at step 100",
            ],
        ),
        (
            ["train.steps=200", "train.schedule.decay_steps=100"],
            50,
            [
                "settings: train.steps 100 is now 200, train.schedule.decay_steps None is now 100",
                "learning rate: as planned before",
            ],
        ),
        (
            ["train.optimizer.lr=2e-3"],
            4,
            [
                "settings: train.optimizer.lr 0.001 is now 0.002",
                "learning rate: 0.001 at step 5, which was to have 0.0005; it ends with 1e-05 at "
                "step 100, and was to end with 1e-05 at step 100",
            ],
        ),
        # 21 / 50 of 1e-3; the cosine was at (1 + cos(pi * 11 / 90)) / 2.
        (
            ["train.schedule.warmup_steps=50"],
            20,
            [
                "settings: train.schedule.warmup_steps 10 is now 50",
                "learning rate: 0.00042 at step 21, which was to have 0.000964; it ends with 1e-05 "
                "at step 100, and was to end with 1e-05 at step 100",
            ],
        ),
        # The cosine is at (1 + cos(pi * 41 / 90)) / 2 in either.
        (
            ["train.optimizer.min_lr=1e-4"],
            50,
            [
                "settings: train.optimizer.min_lr 1e-05 is now 0.0001",
                "learning rate: 0.000613 at step 51, which was to have 0.000574; it ends with "
                "0.0001 at step 100, and was to end with 1e-05 at step 100",
            ],
        ),
        # (1 + cos(pi * 41 / 50)) / 2, and 40 steps at min_lr.
        (
            ["train.schedule.decay_steps=60"],
            50,
            [
                "settings: train.schedule.decay_steps None is now 60",
                "learning rate: 8.71e-05 at step 51, which was to have 0.000574; it ends with "
                "1e-05 at step 60, and was to end with 1e-05 at step 100",
            ],
        ),
        # (1 + cos(pi * 41 / 70)) / 2: a shorter run without decay_steps anneals faster.
        (
            ["train.steps=80"],
            50,
            [
                "settings: train.steps 100 is now 80",
                "learning rate: 0.000373 at step 51, which was to have 0.000574; it ends with "
                "1e-05 at step 80, and was to end with 1e-05 at step 100",
            ],
        ),
        (
            ["train.optimizer.weight_decay=0.5"],
            4,
            [
                "settings: train.optimizer.weight_decay 0.1 is now 0.5",
                "learning rate: as planned before",
            ],
        ),
    ],
)
def test_lines(overrides, step, expected):
    assert rate_changes(config(), config(*overrides), step) == expected
