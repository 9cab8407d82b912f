"""What may be asked of an engine."""

from __future__ import annotations

import pytest

from nvlm.errors import DataError
from nvlm.generate.request import Sampling


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"temperature": -0.1}, r"temperature is -0.1; it has to be 0 \(greedy\) or more"),
        ({"temperature": float("nan")}, "temperature is nan; it has to be a finite number"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0}, "top_p is 0; it has to be above 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"top_k": -1}, r"top_k is -1; it has to be 0 \(all tokens\) or more"),
        ({"top_k": 2.0}, "top_k is 2.0; it has to be a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it has to be 1 or more"),
        ({"seed": 2**64}, "it has to be a number of 64 bits"),
        ({"seed": 1.5}, "seed is 1.5; it has to be a whole number"),
        ({"stop": "END"}, "stop is 'END'; it has to be texts"),
        ({"stop": ("END", "")}, "texts that are not empty"),
        ({"stop": (3,)}, r"stop is \(3,\)"),
    ],
)
def test_what_means_nothing_is_refused(wrong, said):
    with pytest.raises(DataError, match=said):
        Sampling(**wrong)


def test_the_ends_of_what_is_allowed():
    Sampling(max_new_tokens=1, temperature=0, top_p=1, top_k=0, seed=-(2**63))
    Sampling(temperature=100.0, top_p=1e-9, top_k=10**9, seed=2**64 - 1, stop=("\n", "a b"))
