"""`model.layer_implementation` on the machine that was found."""

from __future__ import annotations

import pytest

from nvlm.errors import ConfigError
from nvlm.platform.layers import choose_layers, why_layers
from nvlm.platform.machine import Machine

ENGINE = "transformer_engine"
FOUND = {
    "whole": Machine("GPU", (9, 0), {ENGINE: "2.10.0"}),
    "missing": Machine("GPU", (9, 0)),
    "broken": Machine("GPU", (9, 0), broken={ENGINE: "ImportError: undefined symbol: _ZN3c10"}),
    "no GPU": Machine("CPU"),
}


@pytest.mark.parametrize(
    "state, wanted, precision, expected",
    [
        ("whole", "auto", "bf16", ENGINE),
        ("whole", ENGINE, "bf16", ENGINE),
        ("whole", "local", "bf16", "local"),
        # Its attention over packed documents has no fp32.
        ("whole", "auto", "fp32", "local"),
        ("missing", "auto", "bf16", "local"),
        ("broken", "local", "bf16", "local"),
        ("no GPU", "auto", "bf16", "local"),
    ],
)
def test_layer_implementation(state, wanted, precision, expected):
    assert choose_layers(FOUND[state], wanted, precision) == expected
    assert why_layers(FOUND[state], wanted, precision)


def test_missing_transformer_engine_is_refused():
    with pytest.raises(ConfigError, match=r"not installed .* use auto or local"):
        choose_layers(FOUND["missing"], ENGINE, "bf16")
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        choose_layers(FOUND["no GPU"], ENGINE, "bf16")


@pytest.mark.parametrize("wanted", ["auto", ENGINE])
def test_broken_transformer_engine_is_told(wanted):
    with pytest.raises(ConfigError, match=r"cannot be imported \(.*undefined symbol.*use local"):
        choose_layers(FOUND["broken"], wanted, "bf16")
