"""SEED-Bench's image part from its published files."""

from __future__ import annotations

import re

import pytest
from helpers import benchmark_data_b as made
from helpers.score_tables import read_score_table

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.benchmarks.seed import SEED

# What lmms-eval finds right because its first character is the letter, and nothing more.
BEGINS_WITH_THE_LETTER = {
    "several letters": r"(?s)[A-D](\s|\.|, ?|/| or | and )?[A-D]+.*|a b c|Between .*",
    "a letter in a sentence": r"[A-D] (because|a long) .*|(A .* or .*)",
    "a letter joined with something": r"[A-D](['_?-]).*|a\.b",
    "a word": r"a .*|All of them|answer is a|b\. Vitamin A",
}


def test_questions_about_images_alone(tmp_path):
    items = list(SEED.read(made.write_seed(tmp_path), "test"))
    assert [item.key for item in items] == ["100", "101", "102"]
    assert [item.group for item in items] == [
        "Scene Understanding", "Instances Counting", "Instances Counting",
    ]  # fmt: skip
    assert items[2].images[0]() == made.drawn(2) and items[2].truth == {"letter": "C"}
    assert SEED.prompt(items[1]) == (
        "<image>\nHow many balls are in picture 1?\nA. One\nB. Two\nC. Three\nD. Four\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert SEED.score(items[1], "B") == SEED.score(items[1], "Two.") == 1
    assert SEED.score(items[1], "C. Three") == SEED.score(items[1], "") == 0


def test_parquet_with_lists_of_images(tmp_path):
    path = tmp_path / "data" / "test-00000-of-00001.parquet"
    made.write_parquet(path, made.seed_rows(), several=True)
    items = list(SEED.read(tmp_path, "test"))
    assert [item.key for item in items] == ["100", "101", "102"]
    assert [image() for item in items for image in item.images] == [made.drawn(n) for n in range(3)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"answer": "E"}, r"questions\[1\]: `answer` is 'E', expected one of A, B, C, D"),
        ({"question_type_id": 12}, r"questions\[1\]: `question_type_id` is 12; dimensions"),
        ({"choice_c": None}, r"questions\[1\]: no `choice_c`"),
        ({"data_id": "missing"}, r"questions\[1\]: the image missing is missing; looked in"),
    ],
)
def test_what_is_wrong_is_named(change, message, tmp_path):
    folder = made.write_seed(tmp_path)
    rows = made.seed_rows()
    rows[1].update(change)
    made.write_json(folder / "SEED-Bench.json", {"questions": rows})
    with pytest.raises(DataError, match=message):
        list(SEED.read(folder, "test"))


def test_as_lmms_eval_scores():
    """It takes the first character alone; a letter in brackets or behind words is wrong there."""
    found, num_same, num_right_here = set(), 0, 0
    for row in read_score_table("choices"):
        item = Item("1", "What?", (), {"letter": row["truth"]}, row["options"])
        ours, theirs = SEED.score(item, row["answer"]), row["scores"]["lmms-eval seed"]
        if ours == theirs:
            num_same += 1
        elif ours:
            assert row["answer"].strip()[0].upper() != row["truth"]
            num_right_here += 1
        else:
            reasons = [
                r for r, p in BEGINS_WITH_THE_LETTER.items() if re.fullmatch(p, row["answer"])
            ]
            assert reasons, row
            found |= set(reasons)
    assert found == set(BEGINS_WITH_THE_LETTER)
    assert num_same > 200 and num_right_here > 100
