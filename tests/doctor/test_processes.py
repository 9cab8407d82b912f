"""`nvlm doctor` under torchrun: sound processes, one with wrong bits, one that does not come."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import faulty_ranks, spawn

pytestmark = pytest.mark.parallel


def test_sound_processes(demo_data, tmp_path):
    run = [f"data.root={demo_data}", f"run.dir={tmp_path / 'run'}"]
    spawn.run_or_fail(4, "doctor", "tiny/sft", *run, "parallel.tensor=2", log=tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert "looked at in 7 groups (tensor, data, tensor x pipeline, world): all right" in said
    assert "pairs: 6 looked at in 3 of 3 rounds" in said
    assert "Nothing wrong was found" in said
    assert not (tmp_path / "run").exists()


def broken(what: str, folder: Path, *options: str) -> str:
    log = folder / "log"
    program = [faulty_ranks.__file__, what, "doctor", *options]
    assert spawn.run_program(3, *program, log=log, timeout_seconds=120) != 0
    return log.read_text()


def test_wrong_bits_are_found_and_their_rank_is_named(tmp_path, fault):
    said = broken("results", tmp_path)
    assert "error: sums: wrong: world group: the part of rank 2 on " in said
    assert "error: products of matrices: rank 2 on " in said
    fault(
        what="a device that reckons wrong",
        layout="3 processes",
        outcome="`nvlm doctor` names the rank",
    )


def test_a_rank_that_is_stuck_is_named_in_time(tmp_path, fault):
    said = broken("stuck", tmp_path, "--seconds", "4")
    line = next(line for line in said.splitlines() if line.startswith("error: "))
    assert line.startswith("error: sums of the world groups: not done after 4 s: rank 1 is in ")
    assert "the others are in all_reduce" in line
    fault(
        what="a rank that is stuck before the run",
        layout="3 processes",
        outcome="`nvlm doctor` names it within its limit",
    )
