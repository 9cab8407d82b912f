"""CIDEr and BLEU-4 against pycocoevalcap as it is used by others."""

from __future__ import annotations

import os
import re
import shutil
from importlib.util import find_spec

import pytest
from helpers.score_tables import read_score_table

from nvlm.errors import NvlmError
from nvlm.evaluate.scorers.captions import (
    caption_scores,
    check_caption_scoring,
    rouge_l,
    tokenise,
)

ROWS = read_score_table("captions")
needs_java = pytest.mark.skipif(
    shutil.which("java") is None or find_spec("pycocoevalcap") is None,
    reason="needs Java and pycocoevalcap",
)
# Ends of lines that pycocoevalcap leaves in: its tokenizer then cuts the caption off there.
CUT_OFF = re.compile(r"[\r\v\f\u2028\u2029]")


@needs_java
def test_words_as_pycocoevalcap_cuts():
    ours = tokenise([row["answer"] for row in ROWS])
    cut = 0
    for row, text in zip(ROWS, ours, strict=True):
        theirs = row["scores"]["pycocoevalcap PTBTokenizer"]
        if text != theirs:
            assert CUT_OFF.search(row["answer"]), row["answer"]
            assert text.startswith(theirs)
            cut += 1
    assert cut > 10


@needs_java
def test_scores_as_pycocoevalcap_counts():
    # What it cuts off is left out, so that the words of all captions are the same.
    captions = [CUT_OFF.split(row["answer"])[0] for row in ROWS]
    scores = caption_scores(captions, [row["references"] for row in ROWS])
    theirs = ROWS[0]["scores"]
    assert scores["CIDEr"] == pytest.approx(100 * theirs["pycocoevalcap Cider of all"])
    assert scores["BLEU-4"] == pytest.approx(100 * theirs["pycocoevalcap Bleu_4 of all"])
    each = [row["scores"]["pycocoevalcap Cider"] for row in ROWS]
    assert scores["CIDEr"] == pytest.approx(100 * sum(each) / len(each))
    assert min(each) == 0 < scores["CIDEr"]


@needs_java
def test_cider_as_lmms_eval_counts():
    """On words, which it cuts once more."""
    words = tokenise([CUT_OFF.split(row["answer"])[0] for row in ROWS])
    scores = caption_scores(words, [row["references"] for row in ROWS])
    assert scores["CIDEr"] == pytest.approx(
        100 * ROWS[0]["scores"]["lmms-eval coco_cider of all words"]
    )


@needs_java
def test_an_end_of_a_line_moves_no_other_caption():
    truths = [["a dog runs in the park"], ["a cat sits on the mat"], ["two birds fly over water"]]
    captions = ["a dog runs\rin the park", "a cat sits on the mat", "two birds fly over water"]
    assert caption_scores(captions, truths) == caption_scores(
        [text.replace("\r", " ") for text in captions], truths
    )


@needs_java
def test_a_part_is_scored_as_if_it_were_all():
    captions = [CUT_OFF.sub(" ", row["answer"]) for row in ROWS[:40]]
    references = [row["references"] for row in ROWS[:40]]
    scores = caption_scores(captions, references, {"first": range(20), "odd": range(1, 40, 2)})
    assert scores["CIDEr first"] == caption_scores(captions[:20], references[:20])["CIDEr"]
    assert scores["CIDEr odd"] == caption_scores(captions[1::2], references[1::2])["CIDEr"]
    assert len({round(value, 6) for value in scores.values()}) == 4


@needs_java
def test_no_caption_at_all():
    assert caption_scores(["", ""], [["a dog"], ["a cat"]])["CIDEr"] == 0
    assert tokenise([]) == []


def test_without_java(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NvlmError, match=r"put `java` on the PATH.*no program `java`"):
        check_caption_scoring()
    stand_in = tmp_path / "java"
    stand_in.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    stand_in.chmod(0o755)
    with pytest.raises(NvlmError, match="says: Unable to locate a Java Runtime"):
        check_caption_scoring()


def test_a_java_that_fails_is_said(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap")
    stand_in = tmp_path / "java"
    stand_in.write_text("#!/bin/sh\necho 'a dog'\necho 'Out of memory' >&2\nexit 3\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(NvlmError, match="gave 1 of 2 lines and ended with 3: Out of memory"):
        tokenise(["a dog", "a cat"])


def test_rouge_l_of_one_caption():
    pytest.importorskip("pycocoevalcap")
    assert rouge_l("A dog runs.", ["a dog, runs", "cats"]) == 1
    assert rouge_l("", ["a dog"]) == 0
    assert 0 < rouge_l("a dog", ["a dog runs"]) < 1
