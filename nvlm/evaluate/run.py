"""Answers held-out questions with a Megatron checkpoint, alone or under torchrun.

Every model replica (data-parallel rank) answers its share of the questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from nvlm.checkpoint_io import on_main_rank, read_config, resolve_checkpoint
from nvlm.config.schema import RunConfig
from nvlm.data.encode import SampleEncoder, prepare_prompt
from nvlm.data.tiling import decode_image
from nvlm.evaluate.heldout import Question, read_questions
from nvlm.evaluate.score import TaskScore, is_correct, score_tasks
from nvlm.generate import generate_greedy, load_for_generation
from nvlm.parallel.groups import initialize, shut_down

MAX_NEW_TOKENS = 32


def evaluate_checkpoint(
    checkpoint: Path,
    data_root: Path,
    split: str,
    out: Path,
    limit_per_task: int | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    tensor: int = 1,
    pipeline: int = 1,
) -> list[TaskScore]:
    """Answer the questions of `data_root/split` greedily and write JSON lines to `out`.

    A line has sample_id, source, task, question, truth, answer, correct, prompt_token_ids and
    answer_token_ids (the end-of-turn token included, if it came). Images are tiled and text is laid
    out as the checkpoint's own stage did. All processes call this; `out` is complete once it exists.

    Args:
        checkpoint: a checkpoint or run folder, written at any layout.
        limit_per_task: at most this many samples of each task; None: all.
        max_new_tokens: longest answer.
        tensor, pipeline: layout of a replica; the processes left over answer other questions.

    Returns:
        Scores by task, on every process.

    Raises:
        NvlmError: no checkpoint, no shards, a broken sample, or processes that do not fit.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    questions = read_questions(data_root, split, limit_per_task)
    config = _with_layout(read_config(checkpoint), tensor, pipeline)
    parallel = initialize(config)
    try:
        model, _, _ = load_for_generation(checkpoint, parallel)
        encoder = SampleEncoder.from_config(config)
        out = Path(out)
        on_main_rank(lambda: _prepare(out))
        part = None
        if parallel.is_model_parallel_main:
            part = _part(out, parallel.data_rank).open("w", encoding="utf-8")
        for position in range(parallel.data_rank, len(questions), parallel.data_size):
            row = _answer(model, config, encoder, questions[position], max_new_tokens)
            if part:
                part.write(json.dumps({"position": position} | row) + "\n")
                part.flush()
        if part:
            part.close()
        on_main_rank(lambda: None)  # wait for the others' parts
        on_main_rank(lambda: _merge(out, parallel.data_size))
        return score_tasks(json.loads(line) for line in out.read_text().splitlines())
    finally:
        shut_down()


def _with_layout(config: RunConfig, tensor: int, pipeline: int) -> RunConfig:
    layout = config.parallel.model_copy(
        update={"tensor": tensor, "pipeline": pipeline, "sequence": False}
    )
    return config.model_copy(update={"parallel": layout})


def _answer(
    model, config: RunConfig, encoder: SampleEncoder, question: Question, max_new_tokens: int
) -> dict:
    images = [decode_image(data) for data in question.images]
    prompt = prepare_prompt(config, encoder, question.messages, images)
    prompt_ids = prompt.tokens.tolist()
    tokenizer = encoder.tokenizer
    answer_ids = generate_greedy(
        model,
        tokenizer,
        config,
        prompt_ids,
        torch.from_numpy(prompt.tiles),
        max_new_tokens,
        [tokenizer.end_id],
    )
    answer = tokenizer.decode(answer_ids)
    return {
        "sample_id": question.sample_id,
        "source": question.source,
        "task": question.task,
        "question": question.text,
        "truth": question.truth,
        "answer": answer,
        "correct": is_correct(answer, question.truth),
        "prompt_token_ids": prompt_ids,
        "answer_token_ids": answer_ids,
    }


def _prepare(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    for old in [out, *out.parent.glob(f"{out.name}.part*")]:
        old.unlink(missing_ok=True)


def _part(out: Path, data_rank: int) -> Path:
    return out.with_name(f"{out.name}.part{data_rank}")


def _merge(out: Path, data_size: int) -> None:
    parts = [_part(out, rank) for rank in range(data_size)]
    rows = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    rows.sort(key=lambda row: row.pop("position"))
    beside = out.with_name(f"{out.name}.tmp")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    beside.replace(out)
    for part in parts:
        part.unlink()


def print_scores(scores: Sequence[TaskScore]) -> None:
    for score in scores:
        print(
            f"{score.task}: {score.accuracy:.1%} of {score.num_samples} right "
            f"(majority answer {score.majority_answer!r}: {score.majority:.1%})"
        )
