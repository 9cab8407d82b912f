"""MMMU: by subject as MMMU/MMMU has it, or in one folder; with one image or several."""

from __future__ import annotations

import hashlib
import json

import pytest
from helpers import generate_case, small_model
from helpers.published_files import kept, picture, pictures_of, problem_of, read_all, write_parquet

from nvlm.evaluate.benchmarks.mmmu import MMMU
from nvlm.evaluate.suite.run import evaluate_suite
from nvlm.evaluate.suite.settings import Settings, choose
from nvlm.parallel.groups import initialize, shut_down

COLUMNS = [f"image_{number}" for number in range(1, 8)]
LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def row(key, question, options, answer, images, kind="multiple-choice"):
    """
    Args:
        images: their numbers, from `image_1` on.
    """
    pictures = dict(zip(COLUMNS, [*images, *[None] * 7], strict=False))
    return {
        "id": key, "question": question, "options": options, "explanation": "", **pictures,
        "img_type": "['Tables']", "answer": answer, "topic_difficulty": "Easy",
        "question_type": kind, "subfield": "x",
    }  # fmt: skip


ONE = row("validation_Accounting_1", "<image 1> What is owed?", "['$6', '$7']", "B", [1])
MANY = row(
    "validation_Art_Theory_2", "See <image 1>. Which fits?",
    "['<image 2>', '<image 3>', 'as in <image 1>']", "A", [1, 2, 3],
)  # fmt: skip
OPEN = row("validation_Math_15", "How many? <image 1>", "[]", "['24/7', '3.429']", [4], "open")


def write(folder, rows, split="validation"):
    for each in rows:
        subject = each["id"].split("_", 1)[1].rsplit("_", 1)[0]
        path = folder / subject / f"{split}-00000-of-00001.parquet"
        write_parquet(path, [each], COLUMNS)
    return path


def test_folders_of_subjects(tmp_path):
    write(tmp_path, [ONE, MANY, OPEN])
    write(tmp_path, [row("test_Accounting_1", "?", "['a', 'b']", "?", [0])], "test")
    items = read_all(MMMU, tmp_path)
    assert [(item.key, item.group) for item in items] == [
        ("validation_Accounting_1", "Accounting"),
        ("validation_Art_Theory_2", "Art_Theory"),
        ("validation_Math_15", "Math"),
    ]
    assert [item.truth["answers"] for item in items] == [["B"], ["A"], ["24/7", "3.429"]]


def test_as_hugging_faces_library_writes_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {name: datasets.Image() if name in COLUMNS else datasets.Value("string") for name in ONE}
    )
    rows = [
        {name: {"bytes": picture(value)} if isinstance(value, int) else value
         for name, value in each.items()}
        for each in (ONE, MANY, OPEN)
    ]  # fmt: skip
    dataset = datasets.Dataset.from_list(rows, features=features)
    dataset.to_parquet(tmp_path / "validation-00000-of-00001.parquet")
    items = read_all(MMMU, tmp_path)
    assert [pictures_of(item) for item in items] == [
        [picture(1)], [picture(1), picture(2), picture(3), picture(1)], [picture(4)],
    ]  # fmt: skip


def test_one_folder(tmp_path):
    path = tmp_path / "data/validation-00000-of-00001.parquet"
    write_parquet(path, [ONE, MANY, OPEN], COLUMNS)
    assert [item.group for item in read_all(MMMU, tmp_path)] == ["Accounting", "Art_Theory", "Math"]


def test_prompts(tmp_path):
    write(tmp_path, [ONE, MANY, OPEN])
    one, many, open_question = read_all(MMMU, tmp_path)
    assert MMMU.prompt(one) == f"<image>\n What is owed?\n(A) $6\n(B) $7\n\n{LETTER}"
    assert pictures_of(one) == [picture(1)]
    assert MMMU.prompt(many) == (
        f"See <image>. Which fits?\n(A) <image>\n(B) <image>\n(C) as in <image>\n\n{LETTER}"
    )
    assert pictures_of(many) == [picture(1), picture(2), picture(3), picture(1)]
    assert MMMU.prompt(open_question) == f"<image>\nHow many? \n{SHORT}"
    assert pictures_of(open_question) == [picture(4)]


def test_one_image_at_two_marks_is_shown_once(tmp_path):
    question = "<image 1> What is left of <image 1>?"
    write(tmp_path, [row("validation_Art_1", question, "['a', 'b']", "A", [1, 2])])
    (item,) = read_all(MMMU, tmp_path)
    assert MMMU.prompt(item) == f"<image>\n What is left of ?\n(A) a\n(B) b\n\n{LETTER}"
    assert pictures_of(item) == [picture(1)]


def test_images_without_marks_come_first(tmp_path):
    write(tmp_path, [row("validation_Art_1", "Which?", "['a', 'b']", "A", [1, 2])])
    (item,) = read_all(MMMU, tmp_path)
    assert MMMU.prompt(item) == f"<image>\n<image>\nWhich?\n(A) a\n(B) b\n\n{LETTER}"
    assert pictures_of(item) == [picture(1), picture(2)]


def test_scores(tmp_path):
    write(tmp_path, [ONE, MANY, OPEN])
    one, many, open_question = map(kept, read_all(MMMU, tmp_path))
    assert [MMMU.score(one, text) for text in ("B", "(B)", "A", "")] == [1, 1, 0, 0]
    assert MMMU.score(many, "The answer is (A).") == 1
    assert [MMMU.score(open_question, text) for text in ("3.429", "it is 24/7", "4")] == [1, 1, 0]
    assert MMMU.answer is not None
    assert [MMMU.answer(item) for item in (one, many, open_question)] == ["B", "A", "24/7"]


def test_the_test_split_has_no_score(tmp_path):
    rows = [
        row("test_Accounting_1", "?", "['a', 'b']", "?", [0]),
        row("test_Art_1", "?", "['a', 'b']", "?", [0]),
        row("test_Math_1", "?", "[]", "?", [0], "open"),
    ]
    write(tmp_path, rows, "test")
    items = read_all(MMMU, tmp_path, "test")
    assert [dict(item.truth) for item in items] == [{}, {}, {}]
    assert "test" in MMMU.unscored_splits
    assert MMMU.submission is not None
    assert MMMU.submission(list(map(kept, items)), ["It is (B).", "who knows", " 12 cm\n"]) == {
        "test_Accounting_1": "B", "test_Art_1": "A", "test_Math_1": "12 cm",
    }  # fmt: skip


def test_a_model_is_shown_all_images_of_a_question(tmp_path):
    """Through the whole suite, in the order of the marks."""
    config = small_model.small_config("model.language.init_std=0.2")
    generate_case.make_checkpoint(config, initialize(config, world_size=1), tmp_path / "checkpoint")
    shut_down()
    write(tmp_path / "data/mmmu", [ONE, MANY])
    asked = choose("mmmu", [], Settings(max_new_tokens=2))
    evaluate_suite(tmp_path / "checkpoint", asked, tmp_path / "data", tmp_path / "out")
    lines = (tmp_path / "out/mmmu/predictions.jsonl").read_text().splitlines()
    one, many = [json.loads(line) for line in lines]
    assert one["messages"][-1]["content"].count("<image>") == 1
    hashes = [hashlib.sha256(picture(number)).hexdigest() for number in (1, 2, 3, 1)]
    assert many["images"] == hashes
    assert one["num_tokens"] and many["num_tokens"]


def test_examples_are_of_dev(tmp_path):
    write(tmp_path, [{**ONE, "id": "dev_Accounting_1"}], "dev")
    assert MMMU.train_split is not None
    assert [item.key for item in read_all(MMMU, tmp_path, MMMU.train_split)] == ["dev_Accounting_1"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"id": "Accounting"}, "`id` is 'Accounting', expected SPLIT_SUBJECT_NUMBER"),
        ({"options": "['$6', "}, "`options` is \"['$6',\", expected a list of texts"),
        ({"options": "[]"}, "0 options"),
        ({"answer": "C"}, "`answer` is 'C', which is no option's letter"),
        ({"answer": "['A', 'B']"}, "`answer` is \"['A', 'B']\", which is no option's letter"),
        ({"question": "<image 2> Which?"}, "its text shows image_2, which is empty"),
        ({"image_1": None, "question": "Which?"}, "no image"),
    ],
)
def test_damaged_rows(change, said, tmp_path):
    path = write_parquet(tmp_path / "validation-0.parquet", [MANY, {**ONE, **change}], COLUMNS)
    assert problem_of(MMMU, tmp_path) == f"{path} row 1: {said}"


def test_missing_columns(tmp_path):
    rows = [{name: value for name, value in ONE.items() if name != "image_7"}]
    path = write_parquet(tmp_path / "validation-0.parquet", rows, COLUMNS)
    assert problem_of(MMMU, tmp_path).startswith(f"{path}: no column `image_7`; there is id")
