"""Which rank of a run that hangs is named, from what all of them say."""

from __future__ import annotations

from nvlm.parallel.hang_report import Standing
from nvlm.parallel.hang_verdict import explain, who_differs


def at(rank: int, place: str, waits: bool, **more) -> Standing:
    values = {"step": 12, "order": 5, "seconds": 600.0, "limit_seconds": 600.0, **more}
    return Standing(
        rank=rank, host="node", process=100 + rank, parent=1, place=place, waits=waits, **values
    )


def test_the_one_that_does_not_wait():
    ranks = [at(rank, "the gradient all-reduce", waits=True) for rank in (0, 1, 2)]
    ranks.append(at(3, "data reading", waits=False, order=1, frame="nvlm/data/x.py:8 in read"))
    assert [some.rank for some in who_differs(ranks)] == [3]
    assert explain(ranks, {}) == (
        "rank 3 is in data reading of step 12 (nvlm/data/x.py:8 in read), while the others wait in "
        "the gradient all-reduce of step 12"
    )


def test_one_that_has_just_moved_is_not_waited_for():
    ranks = [at(0, "recording the step", waits=False, seconds=3), at(1, "x", waits=False)]
    assert [some.rank for some in who_differs(ranks)] == [1]


def test_one_that_missed_a_collective_of_its_group():
    """As hosts look that have run ahead of their devices: all wait in the same line."""
    ranks = [
        at(
            rank,
            "summing up the step's loss",
            waits=True,
            sequences={"tp0": 7, "dp0": 4 - (rank == 2)},
        )
        for rank in range(4)
    ]
    ranks[3] = at(3, "summing up the step's loss", waits=True, sequences={"tp1": 2})
    assert [some.rank for some in who_differs(ranks)] == [2]


def test_one_that_is_behind():
    ranks = [at(0, "the gradient all-reduce", waits=True), at(1, "the batch", waits=True, order=2)]
    assert [some.rank for some in who_differs(ranks)] == [1]
    text = explain([*ranks, at(2, "the gradient all-reduce", waits=True)], {})
    assert text.startswith("rank 1 is in the batch of step 12, while the others wait in the grad")


def test_silent_ranks_come_first():
    ranks = [at(1, "the gradient all-reduce", waits=True), at(2, "data reading", waits=False)]
    text = explain(ranks, {0: "process 7 on node1, last seen in the forward pass of step 12"})
    assert text.startswith("rank 0 gives no sign of life: process 7 on node1, last seen in the for")
    assert "while the others wait in" in text


def test_all_alike_say_so():
    ranks = [
        at(rank, "the gradient all-reduce", waits=True, collectives=["all_reduce number 4 of DP"])
        for rank in range(3)
    ]
    assert explain(ranks, {}) == (
        "all 3 ranks wait in the gradient all-reduce of step 12, none for one that does something "
        "else: suspect the network or a device; last collectives: all_reduce number 4 of DP"
    )
