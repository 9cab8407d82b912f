"""Writes the tables of this folder: invented answers, and what implementations of others give them.

    pip install --no-deps --target PACKAGES lmms-eval==0.7.3 ms-vlmeval==0.0.20 anls==0.0.2 \
        open-flamingo==2.0.1 loguru Levenshtein evaluate sacrebleu ...   # what imports miss
    git clone https://github.com/MMMU-Benchmark/MMMU PACKAGES/MMMU   # bb0b95a
    PYTHONPATH=tests:PACKAGES python tests/evaluate/scores/make_scores.py [TABLE ...]

A line of a table has `answer`, what the scorer gets beside it, and `scores`: by implementation. The
tests read the tables alone, so that none needs those packages or a network. VLMEvalKit's code is
that of `ms-vlmeval`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from helpers import hard_answers as hard

LETTERS = "ABCDEFGHIJ"
HERE = Path(__file__).parent
Row = dict[str, Any]


def module_of(distribution: str, name: str) -> ModuleType:
    """A module of an installed package, without what the folders above it import."""
    try:
        packages = Path(str(importlib.metadata.distribution(distribution).locate_file("")))
    except importlib.metadata.PackageNotFoundError:  # a folder of a path in PYTHONPATH
        packages = next(Path(path) for path in sys.path if (Path(path) / distribution).is_dir())
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

    for answer, people in hard.people_and_answers(400):
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


def relaxed_accuracy() -> Iterator[Row]:
    lmms = module_of("lmms-eval", "lmms_eval.tasks.chartqa.utils")
    kit = module_of("ms-vlmeval", "vlmeval.dataset.utils.vqa_eval")
    for truth, answer in itertools.product(hard.CHART_TRUTHS, hard.CHART_ANSWERS):
        line = kit.process_line({"answer": truth, "prediction": answer}, "relaxed_accuracy")
        scores = {
            "lmms-eval chartqa": float(lmms.relaxed_correctness(answer, truth)),
            "VLMEvalKit ChartQA": float(kit.hit_calculate([line], "ChartQA_TEST")[0]),
        }
        yield {"answer": answer, "truth": truth, "scores": scores}


def anls() -> Iterator[Row]:
    lmms = module_of("lmms-eval", "lmms_eval.api.metrics")
    kit = module_of("ms-vlmeval", "vlmeval.dataset.utils.vqa_eval")
    package = importlib.import_module("anls")
    for truths, answer in itertools.product(hard.DOCUMENT_TRUTHS, hard.DOCUMENT_ANSWERS):
        line = kit.process_line({"answer": repr(truths), "prediction": answer}, "anls")
        scores = {
            "lmms-eval anls": lmms.anls(truths, [answer])["anls"],
            "VLMEvalKit DocVQA": float(kit.hit_calculate([line], "DocVQA_VAL")[0]),
            "anls": package.anls_score(answer, truths),
        }
        yield {"answer": answer, "truths": truths, "scores": scores}


def containment() -> Iterator[Row]:
    lmms = module_of("lmms-eval", "lmms_eval.tasks.ocrbench.utils")
    cases = itertools.product((False, True), hard.OCR_TRUTHS, hard.OCR_ANSWERS)
    for is_formula, truths, answer in cases:
        name = "HME100k" if is_formula else "CT80"
        document = {"answer": truths, "dataset": name, "question_type": "Digit String Recognition"}
        said = lmms.ocrbench_process_results(document, [answer])["ocrbench_accuracy"]["score"]
        yield {
            "answer": answer,
            "truths": truths,
            "is_formula": is_formula,
            "scores": {"lmms-eval ocrbench": float(said)},
        }


def options() -> Iterator[Row]:
    kit = module_of("ms-vlmeval", "vlmeval.utils.matching_util")
    science = module_of("lmms-eval", "lmms_eval.tasks.scienceqa.utils")

    def lmms(answer: str, texts: list[str]) -> str | None:
        right = [
            number
            for number in range(len(texts))
            if science.sqa_process_results({"choices": texts, "answer": number}, [answer])[
                "exact_match"
            ]
        ]
        return LETTERS[right[0]] if right else None

    for texts, answer in itertools.product(hard.OPTIONS, hard.LETTER_ANSWERS):
        found = kit.can_infer(answer, dict(zip(LETTERS, texts)))
        scores = {
            "VLMEvalKit can_infer": found if found and found in LETTERS[: len(texts)] else None,
            "lmms-eval scienceqa": lmms(answer, texts),
        }
        yield {"answer": answer, "options": texts, "scores": scores}


def mmmu_choices() -> Iterator[Row]:
    official = module_of("MMMU", "MMMU.mmmu.utils.eval_utils")
    lmms = module_of("lmms-eval", "lmms_eval.tasks._task_utils.mmmu_mcq_utils")
    for module in (official, lmms):  # where nothing is found it would draw
        module.random = SimpleNamespace(choice=lambda letters: None)
    for texts, answer in itertools.product(hard.OPTIONS, hard.LETTER_ANSWERS):
        letters, by_letter = list(LETTERS[: len(texts)]), dict(zip(LETTERS, texts))
        scores = {
            "MMMU": official.parse_multi_choice_response(answer, letters, by_letter),
            "lmms-eval mmmu": lmms.parse_mmmu_multi_choice_response(answer, letters, by_letter),
        }
        yield {"answer": answer, "options": texts, "scores": scores}


def mmmu_open() -> Iterator[Row]:
    official = module_of("MMMU", "MMMU.mmmu.utils.eval_utils")
    lmms = module_of("lmms-eval", "lmms_eval.tasks.mmmu.utils")
    for truths, answer in itertools.product(hard.OPEN_TRUTHS, hard.OPEN_ANSWERS):
        scores = {
            name: float(module.eval_open(truths, module.parse_open_response(answer)))
            for name, module in (("MMMU", official), ("lmms-eval mmmu", lmms))
        }
        yield {"answer": answer, "truths": truths, "scores": scores}


def mathvista_answers() -> Iterator[Row]:
    """`without a judge`: nothing is extracted of what is not the answer alone. `answer alone`: a
    judge would have extracted the very text.
    """
    os.environ.setdefault("OPENAI_API_KEY", "none: no judge is asked")
    lmms = module_of("lmms-eval", "lmms_eval.tasks.mathvista.mathvista_evals")
    evaluator = lmms.MathVistaEvaluator()
    evaluator.get_chat_response = lambda *args, **kwargs: ""

    def right(extraction: str, question: Row) -> float:
        if not extraction:
            return 0.0
        given = evaluator.normalize_extracted_answer(
            extraction,
            question["choices"],
            question["question_type"],
            question["answer_type"],
            question["precision"],
        )
        return float(evaluator.safe_equal(given, question["answer"]))

    for question, answer in itertools.product(hard.MATH_QUESTIONS, hard.MATH_ANSWERS):
        kind = "multi_choice" if question["choices"] else "free_form"
        asked = {
            **question,
            "question_type": kind,
            "query": "",
            "choices": question["choices"] or [],
        }
        answer = answer.strip()
        scores = {
            "lmms-eval without a judge": right(evaluator.extract_answer(answer, asked), asked),
            "lmms-eval answer alone": right(answer, asked),
        }
        yield {"answer": answer, "truth": question, "scores": scores}


TABLES = {
    table.__name__: table
    for table in (
        vqa_accuracy,
        relaxed_accuracy,
        anls,
        containment,
        options,
        mmmu_choices,
        mmmu_open,
        mathvista_answers,
    )
}


def write_table(name: str) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in TABLES[name]()]
    (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        write_table(name)
