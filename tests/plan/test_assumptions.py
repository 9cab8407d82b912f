"""Cards and assumptions by name: overrides, and what is wrong with them."""

from __future__ import annotations

import pytest

from nvlm.errors import ConfigError
from nvlm.plan.assumptions import assumptions_for, parse_overrides
from nvlm.plan.hardware import CARDS, card_named

H100 = CARDS["h100-80gb"]


def test_overrides_are_said():
    plain, other = assumptions_for(H100), assumptions_for(H100, {"matmul_efficiency": 0.5})
    changed = [(a, b) for a, b in zip(plain.all, other.all) if a != b]
    assert [(b.name, b.value, b.source) for _, b in changed] == [
        ("matmul_efficiency", 0.5, "--assume")
    ]
    assert other["matmul_efficiency"] == 0.5
    assert all(assumption.source and assumption.unit for assumption in plain.all)
    assert parse_overrides(["a=1", "b=2e9"]) == {"a": 1.0, "b": 2e9}


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["matmul_eficiency=0.5"], "did you mean matmul_efficiency?"),
        (["xyzzy=0.5"], "no such assumption; known: memory_bytes, "),
        (["matmul_efficiency=1.5"], "at most 1"),
        (["matmul_efficiency=0"], "a share above 0"),
        (["memory_bandwidth=0"], "more than 0"),
        (["launch_seconds=-1"], "a number from 0"),
        (["launch_seconds=nan"], "a number from 0"),
        (["launch_seconds=soon"], "expected NAME=NUMBER"),
        (["launch_seconds"], "expected NAME=NUMBER"),
    ],
)
def test_wrong_overrides(overrides: list[str], expected: str):
    with pytest.raises(ConfigError) as caught:
        assumptions_for(H100, parse_overrides(overrides))
    assert expected in str(caught.value)


def test_unknown_card():
    with pytest.raises(ConfigError, match="did you mean h100-80gb") as caught:
        card_named("H100")
    assert "a100-80gb" in str(caught.value)
