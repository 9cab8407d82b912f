"""Other layouts: each is legal and fits, ordered as planned, and its overrides lead there."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.estimate import make_plan
from nvlm.plan.hardware import CARDS
from nvlm.plan.search import changes_of, search
from nvlm.plan.work import largest_work

SEVEN_B = REPOSITORY / "configs/run/internvit_6b_qwen2_7b/sft.yaml"


def test_found_layouts_are_legal_and_fit():
    config = load_config(SEVEN_B)
    assumptions, work = assumptions_for(CARDS["h100-80gb"]), largest_work(config)
    found = search(config, 8, assumptions, work)
    assert found.num_legal >= found.num_fitting >= len(found.plans) > 0
    seconds = [plan.step_seconds for plan in found.plans]
    assert seconds == sorted(seconds)
    shipped = make_plan(config, 8, assumptions, work)
    assert seconds[0] <= shipped.step_seconds
    for plan in found.plans[:3]:
        assert plan.fits
        # As a user would give them: checked, and the same plan.
        given = load_config(SEVEN_B, changes_of(plan, config), 8)
        again = make_plan(given, 8, assumptions, work)
        assert (again.step_seconds, again.peak_bytes) == (plan.step_seconds, plan.peak_bytes)


def test_recomputes_where_nothing_else_fits():
    config = load_config(SEVEN_B)
    small = assumptions_for(CARDS["a100-40gb"], {"memory_bytes": 38e9})
    found = search(config, 8, small, largest_work(config))
    assert all(plan.fits for plan in found.plans)
    recomputed = [plan.config.train.recompute.language.granularity for plan in found.plans]
    assert "full" in recomputed
    nothing = search(config, 8, assumptions_for(CARDS["rtx-4090"]), largest_work(config))
    assert not nothing.plans and nothing.least_bytes > CARDS["rtx-4090"].memory_bytes


def test_a_number_of_gpus_that_no_layout_divides():
    config = load_config(SEVEN_B)
    with pytest.raises(ConfigError, match="no layout of 17 GPUs"):
        search(config, 17, assumptions_for(CARDS["h200"]), largest_work(config))
