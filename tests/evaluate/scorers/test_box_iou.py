"""Boxes against torchvision, lmms-eval and VLMEvalKit."""

from __future__ import annotations

import math
import re

import pytest
from helpers.score_tables import read_score_table

from nvlm.evaluate.scorers.box_iou import THRESHOLD, box_in, box_iou, is_located

ROWS = read_score_table("box_iou")
_CLOSE = 1e-6  # torchvision's are of 32 bits
_FOUR = r"-?\d+(\.\d+)?(, ?-?\d+(\.\d+)?){3}"

# Answers that lmms-eval does not read (with InternVL's rule of thousandths) and that are read here.
READ_HERE_ALONE = {
    "round brackets or tags": rf"\({_FOUR}\)|<box>{_FOUR}</box>",
    "two points": r"(<box>)?\(\d+, ?\d+\),? ?\(\d+, ?\d+\)(</box>)?|\[\[\d+, \d+\], \[\d+, \d+\]\]",
    "no brackets": rf"{_FOUR}",
    "spaces": r"\[?\d+( \d+){3}\]?|\[ \d+( , \d+){3} \]",
    "numbers like +3, 3. and .3": r"\[+\+\d+.*|\[(\d+\.(, )?){4}\]|\[\[(\.\d+(, )?){4}\]\]",
}  # fmt: skip

# What VLMEvalKit reads otherwise.
OTHERWISE_IN_VLMEVALKIT = {
    "corners the wrong way round": r"\[\d+, \d+, \d+, \d+\]",
    "outside of the image": r"\[-?\d+, \d+, \d+, \d+\]|\[0, 0, 9+, 9+\]|\[0, 0, 500, 50+\]",
    "numbers that are no box": r"from .*|.*[;%].*|\[\[[^]]*|[^[]*\]\]|\[(\d+, ){4}5\]",
    "numbers with exponents": r".*e2.*",
    "thousandths below 1.5": r"\[0, 0, 1, 2\]",
}


def _iou(row):
    box = box_in(row["answer"])
    return 0.0 if box is None else box_iou(box, row["truth"])


def _reasons(table, answer):
    return [reason for reason, pattern in table.items() if re.fullmatch(pattern, answer)]


@pytest.mark.parametrize("implementation", ["lmms-eval compute_iou", "torchvision box_iou"])
def test_as_lmms_eval_and_torchvision(implementation):
    found, num_same = set(), 0
    for row in ROWS:
        theirs = row["scores"][implementation]
        # Both areas make up for one another: a division by zero, or what that gives.
        if theirs is None or math.isnan(theirs):
            assert _iou(row) == 0
        elif _iou(row) == pytest.approx(theirs, abs=_CLOSE):
            num_same += 1
        else:
            assert theirs == 0
            reasons = _reasons(READ_HERE_ALONE, row["answer"])
            assert reasons, row
            found |= set(reasons)
    assert found == set(READ_HERE_ALONE)
    assert num_same > 150


def test_as_vlmevalkit():
    found, num_same = set(), 0
    for row in ROWS:
        theirs = row["scores"]["VLMEvalKit RefCOCO"]
        if _iou(row) == pytest.approx(theirs, abs=_CLOSE):
            num_same += 1
        else:
            reasons = _reasons(OTHERWISE_IN_VLMEVALKIT, row["answer"])
            assert reasons, row
            found |= set(reasons)
    assert found == set(OTHERWISE_IN_VLMEVALKIT)
    assert num_same > 200


def test_a_half_is_enough():
    halves = [row for row in ROWS if _iou(row) == THRESHOLD]
    assert is_located("[[0, 0, 500, 1000]]", [0, 0, 1, 1])
    assert not is_located("[[0, 0, 499, 1000]]", [0, 0, 1, 1])
    assert not is_located("no box", [0, 0, 1, 1])
    assert all(is_located(row["answer"], row["truth"]) for row in halves)


def test_boxes_without_area():
    assert box_iou([0.1, 0.1, 0.1, 0.5], [0.1, 0.1, 0.1, 0.5]) == 0
    assert box_iou([0.5, 0.5, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]) == 0
