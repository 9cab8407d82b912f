"""NVLM-X and NVLM-H evaluated and asked, checkpoint and export: what transformers answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import beside_batches, generate_case
from helpers.shard_writing import draw_image, make_sample, write_shard

from nvlm.evaluate.agreement import compare_answers
from nvlm.evaluate.hf_client import answer_all
from nvlm.evaluate.question_files import write_questions
from nvlm.evaluate.questions import choose_questions, read_questions, with_data
from nvlm.evaluate.run import evaluate_checkpoint
from nvlm.generate.ask import ask_all
from nvlm.generate.asked_files import asked_of_file
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.parallel.groups import initialize, shut_down

# Large random weights: answers that vary from token to token, and with the images.
WEIGHTS = ["model.language.init_std=0.2", "model.connector.init_std=0.1"]
# Width and height of each question's images: of several tiles, of one and several, none.
IMAGES = {"wide": [(336, 112)], "two": [(112, 112), (112, 224)], "text": []}
NUM_TOKENS = 6


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("fusion", beside_batches.FUSIONS)
def test_every_verb_answers_as_transformers_does(fusion, tmp_path, tmp_path_factory, monkeypatch):
    from transformers import dynamic_module_utils

    from nvlm.convert import convert_to_hf

    config = beside_batches.config_of(fusion, *WEIGHTS)
    checkpoint = tmp_path / "checkpoint"
    generate_case.make_checkpoint(config, initialize(config, world_size=1), checkpoint)
    shut_down()
    export = convert_to_hf(checkpoint, tmp_path / "export")
    samples = [
        make_sample(
            key,
            f"What is {key}?",
            "A cat.",
            [draw_image(width, height, n) for n, (width, height) in enumerate(sizes)],
        )
        for key, sizes in IMAGES.items()
    ]
    write_shard(tmp_path / "data" / "heldout" / "a-000000.tar", samples)
    questions = choose_questions(
        read_questions(with_data(Engine(checkpoint).config, tmp_path / "data", "heldout")), None
    ).questions
    asked = write_questions(questions, tmp_path / "questions", 100)
    modules = tmp_path_factory.getbasetemp() / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    answer_all(export, asked, tmp_path / "theirs", NUM_TOKENS)
    theirs = rows_of(tmp_path / "theirs")
    assert len({row["answer"] for row in theirs}) == len(theirs) == len(IMAGES)

    lines = [
        {"prompt": row["messages"][0]["content"], "images": row["images"]}
        for row in rows_of(asked / "samples.jsonl")
    ]
    (asked / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for model in (checkpoint, export):
        out = tmp_path / f"{model.name} evaluated"
        evaluate_checkpoint(model, tmp_path / "data", "heldout", out, max_new_tokens=NUM_TOKENS)
        agreement = compare_answers(rows_of(out), theirs)
        assert agreement.is_complete, agreement
        generated, sampling = tmp_path / f"{model.name} generated", Sampling(NUM_TOKENS)
        ask_all(
            model, asked_of_file(asked / "lines.jsonl", None, sampling), generated, None, sampling
        )
        assert [row["answer_token_ids"] for row in rows_of(generated)] == [
            row["answer_token_ids"] for row in theirs
        ]
