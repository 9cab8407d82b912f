"""Writes the tables of this folder: invented answers, and what implementations of others give them.

    pip install --no-deps --target PACKAGES lmms-eval==0.7.3 open-flamingo==2.0.1 loguru==0.7.3
    PYTHONPATH=tests:PACKAGES python tests/evaluate/scores/make_scores.py [TABLE ...]

A line of a table has `answer`, what the scorer gets beside it, and `scores`: by implementation. The
tests read the tables alone, so that none needs those packages or a network.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from helpers.hard_answers import people_and_answers

HERE = Path(__file__).parent
Row = dict[str, Any]


def module_of(distribution: str, name: str) -> ModuleType:
    """A module of an installed package, without what the folders above it import."""
    packages = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
    parents = name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        parent = ".".join(parents[:depth])
        if parent not in sys.modules:
            module = ModuleType(parent)
            module.__path__ = [str(packages.joinpath(*parents[:depth]))]
            sys.modules[parent] = module
    return importlib.import_module(name)


def vqa_accuracy() -> Iterator[Row]:
    vqav2 = module_of("lmms-eval", "lmms_eval.tasks.vqav2.utils")
    textvqa = module_of("lmms-eval", "lmms_eval.tasks.textvqa.utils")
    flamingo = module_of("open-flamingo", "open_flamingo.eval.vqa_metric")

    def lmms(process: Callable, answers: list[Any], answer: str) -> float:
        document = {"answers": copy.deepcopy(answers), "question_id": 1}
        return process(document, [answer])["exact_match"]

    def official(answer: str, answers: list[dict[str, Any]]) -> float:
        truths = {1: {"answers": copy.deepcopy(answers), "question_type": "what"}}
        people = SimpleNamespace(qa=truths, getQuesIds=lambda: [1])
        given = SimpleNamespace(qa={1: {"answer": answer}}, getQuesIds=lambda: [1])
        evaluation = flamingo.VQAEval(people, given, n=9)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        return round(evaluation.evalQA[1] / 100, 9)

    for answer, people in people_and_answers(400):
        numbered = [{"answer": text, "answer_id": n} for n, text in enumerate(people)]
        yield {
            "answer": answer,
            "people": people,
            "scores": {
                "lmms-eval vqav2": lmms(vqav2.vqav2_process_results, numbered, answer),
                "lmms-eval textvqa": lmms(textvqa.textvqa_process_results, people, answer),
                "open-flamingo VQAEval": official(answer, numbered),
            },
        }


TABLES = {table.__name__: table for table in (vqa_accuracy,)}


def write_table(name: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in TABLES[name]()]
    (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        write_table(name)
