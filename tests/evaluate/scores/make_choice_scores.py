"""Writes the tables of yes-no answers, options, boxes and captions: invented answers, and what
implementations of others give them. None of these keeps functions apart from programs that need a
model, so that only the modules named here are imported, without the packages around them.

    pip install --no-deps --target PACKAGES lmms-eval==0.7.3 loguru==0.7.3 torchvision==0.28.0
    git clone https://github.com/open-compass/VLMEvalKit      # at e8e78f0
    git clone https://github.com/OpenGVLab/InternVL           # at 2410d1d
    PYTHONPATH=tests:PACKAGES:VLMEvalKit:InternVL/internvl_chat/eval/pope \\
        python tests/evaluate/scores/make_choice_scores.py [TABLE ...]

Captions need `nvlm[evaluate]` and Java. The tests read the tables alone.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from helpers.hard_answers import people_and_answers
from helpers.hard_predictions import (
    box_answers,
    captions_and_references,
    option_answers,
    rotated_questions,
    yes_no_answers,
)

HERE = Path(__file__).parent
Row = dict[str, Any]


class _Anything(ModuleType):
    """A package whose `__init__` is not run; what is asked of it is nothing that can be used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def stub(name: str, **attributes: Any) -> None:
    """A package in place of an installed or missing one; its modules are found where they are."""
    folders = [Path(folder, *name.split(".")) for folder in sys.path]
    module = _Anything(name)
    module.__path__ = [str(folder) for folder in folders if folder.is_dir()]
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    vars(module).update(attributes)
    sys.modules[name] = module


def module_alone(name: str) -> ModuleType:
    """A module on the path without what the packages above it import."""
    parents = name.split(".")[:-1]
    for depth in range(1, len(parents) + 1):
        parent = ".".join(parents[:depth])
        if parent not in sys.modules:
            stub(parent)
    return importlib.import_module(name)


def quiet() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


def yes_or_no() -> Iterator[Row]:
    """Of InternVL, whose `eval_pope` has POPE's own program as a function."""
    eval_pope = importlib.import_module("eval_pope").eval_pope
    lmms = module_alone("lmms_eval.tasks.pope.utils")
    stub("sty")  # colours of messages
    process_punctuation = module_alone("vlmeval.smp.misc").process_punctuation
    stub("vlmeval.smp", process_punctuation=process_punctuation)
    vlmeval = module_alone("vlmeval.dataset.utils.yorn")
    with tempfile.NamedTemporaryFile("w", suffix=".json") as labels:
        for answer in yes_no_answers():
            for truth in ("yes", "no"):
                labels.seek(0)
                labels.truncate()
                labels.write(json.dumps({"label": truth}) + "\n")
                labels.flush()
                said = {"text": answer}
                with (
                    contextlib.redirect_stdout(io.StringIO()),
                    contextlib.suppress(ZeroDivisionError),
                ):
                    eval_pope([said], labels.name)
                document = {"answer": truth, "question_id": 1}
                score = lmms.pope_process_results(document, [answer])["pope_accuracy"]["score"]
                yield {
                    "answer": answer,
                    "truth": truth,
                    "scores": {
                        "InternVL eval_pope": said["text"],
                        "VLMEvalKit YOrN_Extraction": vlmeval.YOrN_Extraction(answer).lower(),
                        "lmms-eval pope_process_results": score,
                    },
                }


def choices() -> Iterator[Row]:
    stub("vlmeval.smp")
    vlmeval = module_alone("vlmeval.utils.matching_util")
    mmbench = module_alone("lmms_eval.tasks.mmbench.mmbench_evals").MMBench_Evaluator()
    seed = module_alone("lmms_eval.tasks.seedbench.utils")
    for answer, options, truth in option_answers():
        texts = dict(zip("ABCDEF", options))
        document = {"answer": truth, "data_type": "image", "question_id": 1}
        first = seed.seed_process_result(document, [answer])["seed_all"]
        yield {
            "answer": answer,
            "options": options,
            "truth": truth,
            "scores": {
                "VLMEvalKit can_infer": vlmeval.can_infer(answer, dict(texts)) or None,
                "lmms-eval MMBench can_infer": mmbench.can_infer(answer, dict(texts)) or None,
                "lmms-eval seed": seed.seed_aggregation_result([first]),
            },
        }


def people() -> Iterator[Row]:
    """OK-VQA and VizWiz, which lmms-eval scores after TextVQA's normalisation."""
    okvqa = module_alone("lmms_eval.tasks.ok_vqa.utils").ok_vqa_process_results
    vizwiz = module_alone("lmms_eval.tasks.vizwiz_vqa.utils").vizwiz_vqa_process_results
    for answer, said in people_and_answers(200, seed=1):
        yield {
            "answer": answer,
            "people": said,
            "scores": {
                f"lmms-eval {name}": score({"answers": [*said], "question_id": 1}, [answer])[
                    "exact_match"
                ]
                for name, score in (("ok_vqa", okvqa), ("vizwiz_vqa", vizwiz))
            },
        }


def circular() -> Iterator[Row]:
    """Groups of rows: each question in all rotations, with answers right and wrong."""
    evaluator = module_alone("lmms_eval.tasks.mmbench.mmbench_evals").MMBench_Evaluator()
    for rows in rotated_questions(200):
        with quiet():
            share, _, _ = evaluator.eval_result(rows, eval_method="static")
        yield {"answer": "", "rows": rows, "scores": {"lmms-eval eval_result": float(share)}}


def box_iou() -> Iterator[Row]:
    import torch

    vision = module_alone("torchvision.ops.boxes")
    lmms = module_alone("lmms_eval.tasks.refcoco.utils_rec")
    stub("vlmeval.smp")
    stub("vlmeval.dataset.image_base")
    vlmeval = module_alone("vlmeval.dataset.refcoco").RefCOCODataset
    for answer, truth, width, height in box_answers():
        sizes = [width, height, width, height]
        shares = [n / size for n, size in zip(truth, sizes)]
        given = vlmeval._parse_prediction(answer)
        pixels = None if given is None else vlmeval._to_absolute(given, width, height)
        box = lmms.parse_float_sequence_within(answer)
        if sum(box) >= 4:  # InternVL's rule of thousandths
            box = [n / 1000 for n in box]
        ours, theirs = torch.tensor([box]).double(), torch.tensor([shares]).double()
        try:
            iou = lmms.compute_iou(shares, box)
        except ZeroDivisionError:
            iou = None
        yield {
            "answer": answer,
            "truth": shares,
            "scores": {
                "lmms-eval compute_iou": iou,
                "torchvision box_iou": float(vision.box_iou(theirs, ours)),
                "VLMEvalKit RefCOCO": 0.0
                if pixels is None
                else float(vlmeval._compute_iou(pixels, truth)),
            },
        }


def captions() -> Iterator[Row]:
    """Each row's own CIDEr and ROUGE-L; CIDEr weighs words by all rows of the table together."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = list(captions_and_references(240))
    given = {n: [{"caption": caption}] for n, (caption, _) in enumerate(rows)}
    people = {n: [{"caption": text} for text in texts] for n, (_, texts) in enumerate(rows)}
    # One call for each caption: ends of lines in one would shift those after it.
    tokenised = {
        n: PTBTokenizer().tokenize({n: texts}).get(n, [""])[:1] for n, texts in given.items()
    }
    truths = PTBTokenizer().tokenize(people)
    cider, ciders = Cider().compute_score(truths, tokenised)
    lmms = module_alone("lmms_eval.tasks.coco_cap.utils")
    lmms.generate_submission_file = lambda name, args: os.devnull
    results = [
        {"answer": truths[n], "pred": tokenised[n][0], "image_id": n, "id": n} for n in tokenised
    ]
    with quiet():
        lmms_cider = lmms.coco_cider(results, None)
    bleu, _ = Bleu(4).compute_score(truths, tokenised, verbose=0)
    for number, (caption, texts) in enumerate(rows):
        yield {
            "answer": caption,
            "references": texts,
            "scores": {
                "pycocoevalcap PTBTokenizer": tokenised[number][0],
                "pycocoevalcap Cider": float(ciders[number]),
                "pycocoevalcap Cider of all": float(cider),
                "pycocoevalcap Bleu_4 of all": float(bleu[3]),
                "lmms-eval coco_cider of all words": float(lmms_cider),
            },
        }


TABLES = {
    table.__name__: table for table in (yes_or_no, choices, people, circular, box_iou, captions)
}


def write_table(name: str) -> None:
    # In ASCII: the answers hold ends of lines of all kinds.
    lines = [json.dumps(row) for row in TABLES[name]()]
    (HERE / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{name}: {len(lines)} rows")


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        write_table(name)
