"""Which kernels and settings a run uses: decided from what was found, needs no GPU."""

from __future__ import annotations

import pytest
from helpers import small_model

from nvlm.platform.features import RULES, Situation, decide, is_on
from nvlm.platform.machine import Machine, numbers

H100 = Machine("H100", (9, 0), {"transformer_engine": "2.10.0"}, cudnn=(9, 15, 0))
CPU = Machine("CPU (1 thread)")


@pytest.mark.parametrize("machine", [H100, CPU], ids=lambda machine: machine.device)
def test_every_feature_is_a_line_and_off_has_a_reason(machine):
    config = small_model.small_config()
    lines = decide(config, machine, "local")
    for feature in lines:
        assert feature.value != "off" or feature.reason, feature
    for name in RULES:
        assert is_on(name, config, machine, "local") == (
            not RULES[name](Situation(config, machine, "local"))
        )
    names = [feature.name for feature in lines]
    assert {name.replace("_", " ") for name in RULES} <= set(names)


def test_versions_are_compared_as_numbers():
    assert numbers("2.10.0+769ed778") == (2, 10, 0)
    assert numbers("2.7.4.post1") == (2, 7, 4)
    assert H100.has("transformer_engine", 2, 9) and not H100.has("transformer_engine", 2, 11)
    assert not CPU.has("transformer_engine")
