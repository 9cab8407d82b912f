"""The page on benchmarks: what was right and wrong, with the pictures that were asked about."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from helpers.benchmark_answers import write_answers
from helpers.benchmark_data import picture, write_realworldqa
from helpers.page_tree import Element, parse_page

from nvlm.views.suite_page import write_suite_page

HOSTILE = "</style></script><img src=x onerror=alert(1)> & \"x\" 'y' \x1b[2J\u202e"


def page_of(out: Path) -> Element:
    return parse_page(write_suite_page(out).read_text(encoding="utf-8"))


def rewrite(out: Path, **fields) -> None:
    path = out / "realworldqa" / "predictions.jsonl"
    rows = [json.loads(line) | fields for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_right_and_wrong_answers_with_their_numbers(tmp_path):
    out = write_answers(tmp_path / "a", [1] * 9 + [0] * 3, skipped=[1, 2])
    page = page_of(out)
    facts = {fact.with_tag("span")[0].text: fact.with_tag("b")[0].text
             for fact in page.with_class("fact")}  # fmt: skip
    assert facts["exact match"] == "70.00"
    assert facts["in the paper, of NVLM-D 1.0 72B"] == "69.70"
    assert facts["skipped: image 2"] == "2"
    assert "Wrong: 3 of 3" in page.text and "Right: 6 of 7" in page.text
    cards = page.with_class("sample")
    assert len(cards) == 9
    assert [bool(card.with_class("bad")) for card in cards] == [True] * 3 + [False] * 6
    assert "no pictures: " in page.text  # the data folder is not there


def test_hostile_text_is_shown_as_text(tmp_path):
    out = write_answers(tmp_path / "a", [0, 1])
    turn = {"role": "user", "content": HOSTILE}
    rewrite(out, answer=HOSTILE, group=HOSTILE, truth={"answer": HOSTILE}, messages=[turn])
    page = page_of(out)
    assert not page.with_tag("script") and not page.with_tag("img")
    assert all(name != "onerror" for some in page.all() for name in some.attributes)
    shown = HOSTILE.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    for card in page.with_class("sample"):
        assert card.text.count(shown) == 4
    text = (out / "report.html").read_text()
    assert "\x1b" not in text and "\u202e" not in text


def test_only_pictures_that_were_asked_about_are_shown(tmp_path):
    data = write_realworldqa(tmp_path / "data", num_rows=3)
    out = write_answers(tmp_path / "a", [1, 0, 0], data_folder=data)
    assert "the data have changed" in page_of(out).text
    rewrite(out, images=[hashlib.sha256(picture(1, 48, 48)).hexdigest()])
    pictures = page_of(out).with_tag("img")
    assert [image.attributes["alt"] for image in pictures] == ["picture 1 of 0001"]
    assert pictures[0].attributes["src"].startswith("data:image/")
