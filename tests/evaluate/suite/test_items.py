"""Which questions are asked, and which examples stand before them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.published_files import write_parquet

from nvlm.errors import DataError
from nvlm.evaluate.suite.items import Shots, read_items
from nvlm.evaluate.suite.settings import Asked, Settings, choose


def write_chartqa(data: Path, num_test: int = 12, num_train: int = 30) -> Path:
    for split, num_rows in (("test", num_test), ("train", num_train)):
        rows = [
            {"image": n, "query": f"What of {split} {n}?", "label": [str(n)],
             "human_or_machine": n % 2}
            for n in range(num_rows)
        ]  # fmt: skip
        write_parquet(data / "chartqa" / "data" / f"{split}-00000-of-00001.parquet", rows)
    return data


def asked(**settings) -> Asked:
    (one,) = choose("chartqa", [], Settings(**settings))
    return one


def test_a_limit_is_blind_to_order_and_fixed(tmp_path):
    data = write_chartqa(tmp_path)
    keys = [item.key for item in read_items(asked(), data)]
    some = [item.key for item in read_items(asked(limit=5), data)]
    assert len(some) == 5 and some == sorted(some, key=keys.index)
    assert some != keys[:5]
    assert set(some) < {item.key for item in read_items(asked(limit=7), data)}
    assert [item.key for item in read_items(asked(limit=99), data)] == keys


def keys_before(shots: Shots, items) -> list[list[str]]:
    return [[shot.question for shot in shots.before(item)] for item in items]


def test_examples_are_drawn_by_seed(tmp_path):
    data = write_chartqa(tmp_path)
    items = read_items(asked(), data)
    of = {
        (num, seed): keys_before(Shots(asked(shots=num, shots_seed=seed), data), items)
        for num in (4, 8)
        for seed in (0, 1)
    }
    assert of[8, 0] == keys_before(Shots(asked(shots=8), data), items)
    assert of[8, 0] != of[8, 1]
    for eight, four in zip(of[8, 0], of[4, 0], strict=True):
        assert len(set(eight)) == 8 and eight[:4] == four
        assert all("of train" in question for question in eight)
    assert len({tuple(eight) for eight in of[8, 0]}) == len(items)
    # The same for a question, whatever else is asked.
    few = keys_before(Shots(asked(shots=8), data), items[3:5])
    assert few == of[8, 0][3:5]


def test_too_few_samples_to_draw_from(tmp_path):
    data = write_chartqa(tmp_path, num_train=8)
    with pytest.raises(DataError, match="draws from train, which has 8 samples, expected more"):
        Shots(asked(shots=4), data)


def test_a_question_is_no_example_for_itself(tmp_path):
    data = write_chartqa(tmp_path, num_train=9)
    own = Asked(asked().benchmark, "train", Settings(shots=8))
    shots = Shots(own, data)
    for item in read_items(own, data):
        before = [shot.key for shot in shots.before(item)]
        assert len(before) == 8 and item.key not in before
