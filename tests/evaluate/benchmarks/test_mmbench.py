"""MMBench from its published TSV."""

from __future__ import annotations

import re

import pytest
from helpers import benchmark_data_b as made
from helpers.score_tables import read_score_table

from nvlm.errors import DataError
from nvlm.evaluate.benchmarks.entry import Item
from nvlm.evaluate.benchmarks.mmbench import MMBENCH

# What is scored otherwise than by VLMEvalKit's `can_infer`, which MMBench's authors publish.
DIFFERENT = {
    "a letter in lower case": r"\(?[a-d]\)?",
    "an option's text, with another's in it": r"(?i)Vitamin [AC]|dark red|light blue|100\.|another",
    "an option's text, with a letter in it": r" A woman is running |A\) B",
    "a letter first, then a long text": r"[A-D]: this is a long .*",
    "`answer is` before one letter of several, or in lower case": r"(The )?answer is [a-d]|"
    r"The answer is [A-D](, not| or the answer is) [A-D]",
    "an option's text within a word": r"pre.*|cats|1s|[A-D]_.*",
}


def test_the_tsv(tmp_path):
    items = list(MMBENCH.read(made.write_mmbench(tmp_path), "dev"))
    assert [item.key for item in items] == ["1", "2", "1000001", "1000002", "2000001"]
    assert MMBENCH.prompt(items[0]) == (
        "<image>\nIt is small.\nLook closely.\nWhat is in picture 1?\nA. red, or\tso\n"
        'B. the "left" one\nC. blue\n'
        "Answer with the option's letter from the given choices directly."
    )
    assert MMBENCH.prompt(items[3]).startswith(
        "<image>\nWhat is in picture 2?\nA. a dog\nB. a cat\n"
    )
    assert [item.truth["letter"] for item in items] == ["B", "B", "A", "A", "C"]
    assert [item.images[0]() for item in items] == [made.drawn(n) for n in (1, 2, 1, 2, 1)]
    assert [item.group for item in items[:2]] == ["color", "identity"]
    assert MMBENCH.score(items[1], "B. a dog") == 1 and MMBENCH.score(items[1], "A") == 0


def test_parquet(tmp_path):
    rows = made.mmbench_rows()
    made.write_parquet(tmp_path / "data" / "dev-00000-of-00001.parquet", rows)
    items = list(MMBENCH.read(tmp_path, "dev"))
    assert [item.options for item in items] == [
        item.options for item in MMBENCH.read(made.write_mmbench(tmp_path / "tsv"), "dev")
    ]
    assert items[4].images[0]() == made.drawn(4)


def test_circular_and_plain(tmp_path):
    items = list(MMBENCH.read(made.write_mmbench(tmp_path), "dev"))
    answers = ["B", "B", "A", "B", "C"]  # the dog is missed where it is A
    scores = [MMBENCH.score(item, answer) for item, answer in zip(items, answers, strict=True)]
    summary = MMBENCH.summarise(items, answers, scores)
    assert summary.score == 50
    assert summary.parts == {"plain": 100, "attribute": 100, "coarse": 0}
    assert MMBENCH.summarise(items[2:3], ["A"], [1.0]).score == 100


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows[1].update(answer="C"), r"row 2: `answer` is 'C', which none of its 2"),
        (lambda rows: rows[1].update(index="x"), r"row 2: `index` is 'x', expected a whole number"),
        (lambda rows: rows[1].update(question=" "), r"row 2: no `question`; there is"),
        (lambda rows: rows[2].update(image="77"), r"row 3: `image` is '77': no base64, and no"),
    ],
)
def test_what_is_wrong_is_named(change, message, tmp_path):
    rows = made.mmbench_rows()
    change(rows)
    with pytest.raises(DataError, match=message):
        list(MMBENCH.read(made.write_mmbench(tmp_path, rows), "dev"))


def test_a_file_without_rotations_is_refused(tmp_path):
    folder = made.write_mmbench(tmp_path, made.mmbench_rows(num_rotations=1))
    with pytest.raises(DataError, match="no row is a question with its options rotated"):
        list(MMBENCH.read(folder, "dev"))


def test_a_damaged_tsv(tmp_path):
    folder = made.write_mmbench(tmp_path)
    path = folder / "MMBench_DEV_EN.tsv"
    path.write_text(path.read_text().replace("\timage\n", "\tpicture\n", 1))
    with pytest.raises(DataError, match="no column `image`; there is index, question"):
        list(MMBENCH.read(folder, "dev"))
    path.write_text("index\timage\n5\n")
    with pytest.raises(DataError, match="row 1: 1 cells under a header of 2"):
        list(MMBENCH.read(folder, "dev"))


def test_as_vlmevalkit_scores():
    found, num_same = set(), 0
    for row in read_score_table("choices"):
        truth = row["truth"]
        item = Item("1", "What?", (), {"letter": truth}, row["options"])
        ours = MMBENCH.score(item, row["answer"])
        if ours == float(row["scores"]["VLMEvalKit can_infer"] == truth):
            num_same += 1
            continue
        reasons = [r for r, pattern in DIFFERENT.items() if re.fullmatch(pattern, row["answer"])]
        assert reasons, row
        found |= set(reasons)
    assert found == set(DIFFERENT)
    assert num_same > 400
