"""`nvlm evaluate` on one process, from shards as an import writes them to scores."""

from __future__ import annotations

import json
import re

import pytest
from helpers import generate_case, small_model
from helpers.shard_writing import as_json, draw_image, write_shard
from typer.testing import CliRunner

from nvlm.cli import app
from nvlm.errors import ConfigError, DataError
from nvlm.evaluate.agreement import compare_answers
from nvlm.evaluate.run import evaluate_checkpoint
from nvlm.evaluate.score import truth_of
from nvlm.generate.thrift import Thrift
from nvlm.parallel.groups import initialize, shut_down


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = small_model.small_config("model.language.init_std=0.2", "data.max_skipped_share=0.5")
    target = tmp_path_factory.mktemp("evaluate") / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), target)
    shut_down()
    return target


@pytest.fixture
def root(tmp_path):
    """A source as `data import` makes one: no task, a broken picture, a text."""
    image, turned = draw_image(120, 80), _turned()
    asked = as_json(("user", "<image>\nWhat is this?"), ("assistant", "A cat."))
    vqa = {"question": "How many?", "answers": ["11", "eleven"], "task": "vqa\x1b[2J"}
    samples = [
        {"__key__": "whole", "json": asked, "png": image},
        {"__key__": "turned", "json": asked, "jpg": turned},
        {"__key__": "cut", "json": asked, "png": image[:-200]},
        {"__key__": "vqa", "json": json.dumps(vqa).encode(), "png": image},
        {"__key__": "long", "json": as_json(("user", "7 " * 40_000), ("assistant", "Yes."))},
        {"__key__": "wrong", "json": asked},
        {"__key__": "page", "json": b'{"text": "A page."}'},
    ]
    write_shard(tmp_path / "data" / "heldout" / "pictures" / "a-000000.tar", samples)
    return tmp_path / "data"


def _turned() -> bytes:
    import io

    from PIL import ExifTags, Image

    image = Image.open(io.BytesIO(draw_image(120, 80)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", exif=exif)
    return encoded.getvalue()


def test_what_is_asked_and_what_not_is_said(checkpoint, root, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    scores = evaluate_checkpoint(checkpoint, root, "heldout", out, max_new_tokens=3)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == ["whole", "turned", "vqa"]
    assert [row["task"] for row in rows] == ["pictures", "pictures", "vqa\x1b[2J"]
    assert rows[2]["truth"] == ["11", "eleven"]
    assert truth_of(rows[2]).answers == ["11", "eleven"]
    assert [row.get("repaired") for row in rows] == [None, {"rotated": 1}, None]
    assert all(1 <= len(row["answer_token_ids"]) <= 3 for row in rows)
    assert [(score.task, score.num_samples) for score in scores] == [
        ("pictures", 2),
        ("vqa\x1b[2J", 1),
    ]
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert max(map(len, printed.splitlines())) < 400
    assert re.search(
        r"^ pictures +7 +4 +image_count 1, no_question 1, too_long 1", printed, flags=re.MULTILINE
    )
    assert "pictures a-000000.tar wrong: image_count: 1 <image> marks" in printed
    assert "pictures a-000000.tar long: too_long: a prompt of" in printed
    assert "1 more left out, whose images cannot be decoded" in printed
    assert "pictures a-000000.tar cut: image: " in printed
    assert "questions of pictures without a task: 4" in printed
    assert "repaired as in training: rotated 1" in printed
    # Again: what was there is replaced, which is said.
    evaluate_checkpoint(checkpoint, root, "heldout", out, limit_per_task=2, max_new_tokens=3)
    # Of two pictures, one cannot be decoded.
    assert len(out.read_text().splitlines()) == 2
    assert "has answers: they are replaced when all new ones are there" in capsys.readouterr().out


def test_rows_say_how_much_of_the_prompt_was_kept(checkpoint, root, tmp_path):
    found = {}
    for name, thrift in (("all", None), ("some", Thrift(0.5, 0.75))):
        out = tmp_path / name
        evaluate_checkpoint(checkpoint, root, "heldout", out, 1, max_new_tokens=2, thrift=thrift)
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    for whole, fewer in zip(found["all"], found["some"], strict=True):
        assert fewer["keep_visual_tokens"] == 0.5 and fewer["keep_cache"] == 0.75
        assert not any(key.startswith("keep_") for key in whole)
        assert len(fewer["prompt_token_ids"]) < len(whole["prompt_token_ids"])
        assert fewer["sample_id"] == whole["sample_id"] and fewer["answer_token_ids"]
    with pytest.raises(DataError, match=r"with all and with keep_cache 0\.75, keep_visual_tokens"):
        compare_answers(found["all"], found["some"])


def test_too_many_bad_samples_end_it_before_the_model_is_loaded(checkpoint, tmp_path):
    asked = as_json(("user", "<image>\nWhat?"), ("assistant", "A cat."))
    samples = [{"__key__": f"s{n}", "json": asked} for n in range(30)]
    samples.append({"__key__": "good", "json": as_json(("user", "What?"), ("assistant", "Yes."))})
    write_shard(tmp_path / "heldout" / "a-000000.tar", samples)
    out = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match=r"30 of 31 samples cannot be used, more than data\.max_s"):
        evaluate_checkpoint(checkpoint, tmp_path, "heldout", out)
    assert [path.name for path in tmp_path.iterdir()] == ["heldout"]


def test_a_layout_that_does_not_fit_is_refused(checkpoint, root, tmp_path):
    out = tmp_path / "answers.jsonl"
    with pytest.raises(ConfigError, match=r"1 processes do not fit parallel\.tensor 2"):
        evaluate_checkpoint(checkpoint, root, "heldout", out, tensor=2)
    with pytest.raises(ConfigError, match=r"parallel\.tensor 3 does not divide"):
        evaluate_checkpoint(checkpoint, root, "heldout", out, tensor=3)


@pytest.mark.parametrize(
    "option", ["--limit-per-task", "--max-new-tokens", "--tensor", "--pipeline"]
)
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_numbers_below_one_are_refused(option, value):
    arguments = ["evaluate", "run", "--data-root", "data", "--out", "a.jsonl", option, value]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert option in result.output
