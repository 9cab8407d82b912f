"""Answers held-out questions with a Megatron checkpoint, alone or under torchrun.

Every model replica (data-parallel rank) answers its share of the questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from nvlm.checkpoint_io import on_main_rank, resolve_checkpoint
from nvlm.config.schema import ParallelConfig, RunConfig
from nvlm.data.encode import SampleEncoder, prepare_prompt
from nvlm.data.image import decode_image
from nvlm.evaluate.heldout import Question, read_questions
from nvlm.evaluate.score import TaskScore, is_correct, score_tasks
from nvlm.generate.greedy import generate_greedy
from nvlm.generate.load import load_for_generation
from nvlm.parallel.groups import barrier, shut_down
from nvlm.printing import say

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
    answer_token_ids (the end-of-turn token included, if it came). Images are tiled and text is
    laid out as the checkpoint's own stage did. All processes call this; `out` is complete once it
    exists.

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
    # Before any process group starts.
    checkpoint = resolve_checkpoint(checkpoint)
    questions = read_questions(data_root, split, limit_per_task)
    out = Path(out)
    layout = ParallelConfig(tensor=tensor, pipeline=pipeline)
    model, tokenizer, config = load_for_generation(checkpoint, layout)
    try:
        from megatron.core import parallel_state

        data_rank = parallel_state.get_data_parallel_rank()
        data_size = parallel_state.get_data_parallel_world_size()
        is_replica_main = dist.get_rank() == parallel_state.get_model_parallel_src_rank()
        encoder = SampleEncoder.from_config(config)
        on_main_rank(lambda: _prepare(out))
        lines = _part(out, data_rank).open("w", encoding="utf-8") if is_replica_main else None
        for position in range(data_rank, len(questions), data_size):
            row = _answer(model, tokenizer, config, encoder, questions[position], max_new_tokens)
            if lines:
                lines.write(json.dumps({"position": position} | row) + "\n")
                lines.flush()
        if lines:
            lines.close()
        barrier()
        on_main_rank(lambda: _merge(out, data_size))
        return score_tasks(json.loads(line) for line in out.read_text().splitlines())
    finally:
        shut_down()


def _answer(
    model,
    tokenizer,
    config: RunConfig,
    encoder: SampleEncoder,
    question: Question,
    max_new_tokens: int,
) -> dict:
    images = [decode_image(data) for data in question.images]
    prompt = prepare_prompt(config, encoder, question.messages, images)
    prompt_ids = prompt.tokens.tolist()
    answer_ids = generate_greedy(
        model,
        tokenizer,
        config,
        prompt_ids,
        torch.from_numpy(prompt.tiles),
        max_new_tokens,
        stop_ids={encoder.tokenizer.end_id},
    )
    answer = tokenizer.decode(answer_ids, skip_special_tokens=True).strip()
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
        say(
            f"{score.task}: {score.accuracy:.1%} of {score.num_samples} right "
            f"(majority answer {score.majority_answer!r}: {score.majority:.1%})"
        )
