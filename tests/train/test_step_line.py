"""The terminal's line of a step: what it says, where it breaks, and how long a run still takes."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from nvlm.train.step_line import TimeLeft, print_step, spoken_time

TINY = {
    "loss": 2.34567,
    "grad_norm": 1.5,
    "lr": 1e-3,
    "seconds": 0.25,
    "data_seconds": 0.01,
    "tokens": 72,
    "all_tokens": 1200,
    "tiles": 62,
    "padding": 0.043,
    "tokens_per_second": 4800.0,
    "tflops_per_second": 0.0123,
    "rank_imbalance": 1.0,
}
LARGE = {
    **TINY,
    "loss": 11.87654,
    "grad_norm": 1234.567,
    "lr": 1.2345e-06,
    "seconds": 123.456,
    "data_seconds": 12.3456,
    "tokens": 12_345_678,
    "all_tokens": 23_456_789,
    "tiles": 123_456,
    "tokens_per_second": 1_234_567.8,
    "tflops_per_second": 432.1,
    "mfu": 0.4321,
    "rank_imbalance": 1.234,
}


def printed(record: dict, step: int, steps: int, width: int, is_terminal: bool = True) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, soft_wrap=True)
    print_step(console, step, steps, record, 1_000_000)
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())


@pytest.mark.parametrize("record, steps", [(TINY, 20), (LARGE, 200_000)])
def test_lines_break_between_parts_only(record: dict, steps: int):
    in_one = printed(record, 3, steps, 80, is_terminal=False)
    assert in_one.count("\n") == 1
    parts = in_one.strip().split("  ")
    assert f"trained {record['tokens']:,} of {record['all_tokens']:,} tokens" in parts
    assert f"lr {record['lr']:.2e}" in parts and "11 d 13 h left" in parts
    for width in (80, 81, 100, 132, 400):
        lines = printed(record, 3, steps, width).splitlines()
        assert max(map(len, lines)) <= width
        found = [part for line in lines for part in line.strip().split("  ")]
        assert [part.strip() for part in found] == [part.strip() for part in parts]
    assert len(printed(record, 3, steps, 80).splitlines()) <= (2 if record is TINY else 4)


def test_older_records_and_the_last_step():
    record = {key: value for key, value in TINY.items() if key != "all_tokens"}
    assert "trained 72 tokens" in printed(record, 3, 20, 80)
    assert "left" not in printed(record, 20, 20, 80)


def test_time_left():
    left, now = TimeLeft(), 0.0
    assert left.seconds(5) == 0.0
    for step in range(20):
        seconds = 100.0 if step == 7 else 2.0  # one slow step does not count
        now += seconds + (3.8 if step % 2 else 0.0)  # every other step is saved for 3.8 s
        left.add_step(seconds, now)
    assert left.seconds(10) == pytest.approx(10 * (2.0 + 10 * 3.8 / 19))


def test_spoken_time():
    cases = {0.4: "0 s", 59.6: "1 min 0 s", 3600: "1 h 0 min", 90061: "1 d 1 h", 61: "1 min 1 s"}
    assert {seconds: spoken_time(seconds) for seconds in cases} == cases
