"""The GPU platform's choice of the layers' implementation; needs no GPU to be decided."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest

from nvlm.errors import ConfigError
from nvlm.platform import cuda

BROKEN = {
    "another torch's": ImportError("undefined symbol: _ZN3c10"),
    "without a library": OSError("libcudnn.so.9: cannot open shared object file"),
    "the wheel alone": RuntimeError("Found empty `transformer-engine` meta package installed."),
    "another version's": AssertionError(),
}


@pytest.fixture
def installed(monkeypatch):
    """Make Transformer Engine look installed, missing, or broken.

    What a broken one raises depends on how: a library that is missing, another version's, another
    torch's. Megatron-core expects the first of these alone.
    """
    monkeypatch.setitem(sys.modules, "transformer_engine", None)  # the end of the test restores it
    cuda._why_transformer_engine_is_hidden.cache_clear()

    def make(state: str) -> None:
        find, load = importlib.util.find_spec, importlib.import_module

        def find_spec(name: str, *rest):
            if name == "transformer_engine":
                return None if state == "missing" else object()
            return find(name, *rest)

        def import_module(name: str, *rest):
            if name == "transformer_engine.pytorch":
                if state in BROKEN:
                    raise BROKEN[state]
                sys.modules["transformer_engine"] = sys
                return None
            return load(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(importlib, "import_module", import_module)

    yield make
    cuda._why_transformer_engine_is_hidden.cache_clear()


@pytest.mark.parametrize(
    "state, wanted, precision, expected",
    [
        ("whole", "auto", "bf16", "transformer_engine"),
        ("whole", "transformer_engine", "bf16", "transformer_engine"),
        ("whole", "local", "bf16", "local"),
        # Its attention over packed documents has no fp32.
        ("whole", "auto", "fp32", "local"),
        ("missing", "auto", "bf16", "local"),
        *((state, "local", "bf16", "local") for state in BROKEN),
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
@pytest.mark.parametrize("state", BROKEN)
def test_broken_transformer_engine_is_told(installed, state, wanted):
    installed(state)
    with pytest.raises(ConfigError, match=r"cannot be imported \((?P<why>.+)\).*use local") as told:
        cuda.resolve_layer_implementation(wanted, "bf16")
    assert (str(BROKEN[state]) or "AssertionError") in str(told.value)


@pytest.mark.parametrize("state", BROKEN)
def test_broken_transformer_engine_is_hidden_from_megatron(installed, state):
    """It is imported there for local layers too."""
    installed(state)
    cuda.activate()
    with pytest.raises(ImportError):
        import transformer_engine  # type: ignore[import-not-found]  # noqa: F401


def test_whole_transformer_engine_is_not_hidden(installed):
    installed("whole")
    cuda.activate()
    assert sys.modules["transformer_engine"] is not None
