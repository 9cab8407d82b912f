"""The GPU platform's choice of the layers' implementation; needs no GPU to be decided."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

from nvlm.errors import ConfigError
from nvlm.platform import cuda


@pytest.fixture
def installed(monkeypatch):
    """Make Transformer Engine look installed, missing, or broken."""

    def make(state: str) -> None:
        find, load = importlib.util.find_spec, importlib.import_module

        def find_spec(name: str, *rest):
            if name == "transformer_engine":
                return None if state == "missing" else object()
            return find(name, *rest)

        def import_module(name: str, *rest):
            if name == "transformer_engine.pytorch":
                if state == "broken":
                    raise ImportError("undefined symbol: _ZN3c10")
                return None
            return load(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(importlib, "import_module", import_module)

    return make


@pytest.mark.parametrize(
    "state, wanted, precision, expected",
    [
        ("whole", "auto", "bf16", "transformer_engine"),
        ("whole", "transformer_engine", "bf16", "transformer_engine"),
        ("whole", "local", "bf16", "local"),
        # Its attention over packed documents has no fp32.
        ("whole", "auto", "fp32", "local"),
        ("missing", "auto", "bf16", "local"),
        ("broken", "local", "bf16", "local"),
    ],
)
def test_layer_implementation(installed, state, wanted, precision, expected):
    installed(state)
    assert cuda.resolve_layer_implementation(wanted, precision) == expected


def test_missing_transformer_engine_is_refused(installed):
    installed("missing")
    with pytest.raises(ConfigError, match=r"not installed .* use auto or local"):
        cuda.resolve_layer_implementation("transformer_engine", "bf16")


@pytest.mark.parametrize("wanted", ["auto", "transformer_engine"])
def test_broken_transformer_engine_is_told(installed, wanted):
    installed("broken")
    with pytest.raises(ConfigError, match=r"cannot be imported \(undefined symbol.*use local"):
        cuda.resolve_layer_implementation(wanted, "bf16")
