"""Greedy answers of the model as it trains, at its layout, by Megatron-core's schedule.

Many questions are answered at once: prompts are packed into rows of the shape that training has,
each with room for its answer behind it. Every pass through the model gives every question its next
token, which is written into the row; what stands behind it is not seen by causal attention. So
everything that trains can answer, with the kernels that it trains with: sequence parallelism,
pipeline stages and chunks of them. Tiles are encoded once, and a pass costs what the same rows cost
in validation. For short answers that is what a cache takes, too (docs/experiments.md).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor

from nvlm import phases
from nvlm.batch import IGNORED_LABEL, MicroBatch, StepBatch
from nvlm.config import RunConfig
from nvlm.data.loading.collate import PackedSample, build_micro_batch
from nvlm.data.text.chat import ChatTokenizer, open_tokenizer
from nvlm.data.text.encode import EncodedPrompt, EncodedSample, SampleEncoder
from nvlm.model.nvlm_d import NVLMD
from nvlm.parallel.broadcast import next_step_batch
from nvlm.parallel.groups import Parallel
from nvlm.train.optim import bare
from nvlm.train.run_folder import open_records
from nvlm.train.step import run_schedule
from nvlm.train.training import Training

# Tiles of the questions that are answered at once, whose features are kept meanwhile.
_MAX_TILES = 64


@dataclass(frozen=True)
class Prompt:
    """A question as the model reads it."""

    key: str
    encoded: EncodedPrompt


def open_encoder(config: RunConfig) -> tuple[Any, SampleEncoder]:
    """transformers' tokenizer of the run, to read answers with, and the encoder of its prompts."""
    tokenizer = open_tokenizer(config.model.tokenizer)
    chat = ChatTokenizer(tokenizer, config.model.image_token, "model.tokenizer")
    return tokenizer, SampleEncoder.from_config(config, chat)


def drop_later_records(path: Path, training: Training, console: Console) -> None:
    """Drop what an earlier start of the run noted in `path` after the step that it goes on from."""
    if training.parallel.is_main:
        file, note = open_records(path, training.step)
        file.close()
        if note:
            console.print(note, markup=False, highlight=False)


def answer_live(
    training: Training,
    prompts: Iterable[Prompt],
    max_new_tokens: int,
    pad_id: int,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """The most likely answers' tokens, up to and with the stop token; see `generate_greedy`.

    Every process of a model replica calls this, in evaluation mode and without gradients.

    Args:
        prompts: of this replica, on the process that reads for it, which takes them as it comes to
            them; not looked at on others, which get the same answers.
    """
    config, parallel = training.config, training.parallel
    batches = None
    if parallel.is_model_parallel_main:
        batches = question_batches(config, prompts, max_new_tokens, pad_id)
    answers: list[list[int]] = []
    while True:
        step = next_step_batch(batches, parallel, shares_tiles=False)
        if step is None:
            return answers
        rows = _encoded(step, bare(training.chunks)[0], parallel).micro_batches
        chosen = _answer_rows(training, rows, max_new_tokens, stop_ids)
        answers += [_up_to_stop(ids, stop_ids) for ids in chosen]


def question_batches(
    config: RunConfig, prompts: Iterable[Prompt], max_new_tokens: int, pad_id: int
) -> Iterator[StepBatch]:
    """Rows of prompts with room for their answers, in the order of `prompts`, some at a time.

    A label stands where an answer begins, and nowhere else.
    """
    samples: list[PackedSample] = []
    for prompt in prompts:
        sample = _with_room(prompt, max_new_tokens, pad_id)
        num_tiles = sum(len(s.tiles) for s in [*samples, sample])
        if samples and num_tiles > _MAX_TILES:
            yield _step(config, samples, pad_id)
            samples = []
        samples.append(sample)
    if samples:
        yield _step(config, samples, pad_id)


def _with_room(prompt: Prompt, room: int, pad_id: int) -> PackedSample:
    encoded = prompt.encoded
    tokens = np.concatenate([encoded.tokens, np.full(room, pad_id, np.int64)])
    labels = np.full(len(tokens), IGNORED_LABEL, np.int64)
    labels[len(encoded.tokens) - 1] = pad_id
    image_mask = np.concatenate([encoded.image_mask, np.zeros(room, np.bool_)])
    beside = encoded.beside and encoded.beside.followed_by(room)
    alignment = encoded.alignment and encoded.alignment.followed_by(room)
    sample = EncodedSample(tokens, labels, image_mask, beside, alignment, encoded.grids)
    return PackedSample(prompt.key, sample, encoded.tiles)


def _step(config: RunConfig, samples: list[PackedSample], pad_id: int) -> StepBatch:
    # Rows as long as those of training, for which kernels are chosen, unless a question is longer.
    usual = config.train.micro_batch_size * config.stage.sequence_length
    length = -(-max(len(sample.encoded.tokens) for sample in samples) // usual) * usual
    rows: list[list[PackedSample]] = []
    room = 0
    for sample in samples:
        num_tokens = len(sample.encoded.tokens)
        if num_tokens > room:
            rows.append([])
            room = length
        rows[-1].append(sample)
        room -= num_tokens
    rows += [[]] * _num_missing(config, len(rows))
    image_size = config.model.vision.image_size
    has_beside = config.model.fusion != "decoder_only"
    micro_batches = [
        build_micro_batch([row], length, image_size, pad_id, has_beside=has_beside) for row in rows
    ]
    return StepBatch(micro_batches, [], {})


def _encoded(step: StepBatch, model: NVLMD, parallel: Parallel) -> StepBatch:
    """The step with features in the place of tiles, so that they are not encoded in every pass.

    On the first stage alone, whatever `parallel.vision` says: questions have few tiles.
    """
    if not parallel.is_first_stage:
        return step
    return replace(
        step,
        micro_batches=[
            replace(row.without_tiles(), features=model.visual.encode(row.tiles))
            if row.num_tiles
            else row
            for row in step.micro_batches
        ],
    )


def _answer_rows(
    training: Training, rows: list[MicroBatch], max_new_tokens: int, stop_ids: Collection[int]
) -> list[list[int]]:
    """Tokens that follow each label of the rows, until all have come to a stop token.

    Rows whose answers have all ended are left out of further passes.
    """
    stops = {*stop_ids}
    positions = [(row.labels[0] != IGNORED_LABEL).nonzero()[:, 0] for row in rows]
    answers: list[list[list[int]]] = [[[] for _ in place] for place in positions]
    for _ in range(max_new_tokens):
        waiting = [
            n for n, ids in enumerate(answers) if any(stops.isdisjoint(answer) for answer in ids)
        ]
        if not waiting:
            break
        ended = [n for n in range(len(rows)) if n not in waiting]
        waiting += ended[: _num_missing(training.config, len(waiting))]
        tokens = _next_tokens(training, [rows[n] for n in waiting], [positions[n] for n in waiting])
        for n, chosen in zip(waiting, tokens.split([len(positions[n]) for n in waiting])):
            positions[n] = positions[n] + 1
            rows[n].tokens[0, positions[n]] = chosen
            for answer, token in zip(answers[n], chosen.tolist(), strict=True):
                answer.append(token)
    return [answer for of_row in answers for answer in of_row]


def _num_missing(config: RunConfig, num_rows: int) -> int:
    """Chunks take turns on as many micro-batches as there are pipeline stages."""
    layout = config.parallel
    return -num_rows % layout.pipeline if layout.virtual_pipeline > 1 else 0


def _next_tokens(training: Training, rows: list[MicroBatch], positions: list[Tensor]) -> Tensor:
    """[questions] int64: the most likely token behind each position, on every process."""
    parallel = training.parallel

    def forward(data_iterator, model):
        number: int
        row: MicroBatch
        number, row = next(data_iterator)
        phases.enter(phases.FORWARD, micro_batch=number)

        def choose(logits_1tv: Tensor):
            here, is_here = _on_this_rank(row, positions[number])
            best = most_likely(logits_1tv[0, here], parallel) * is_here
            if row.part is not None:
                dist.all_reduce(best, group=parallel.groups.cp)
            # The schedules want a loss, and a number of tokens to divide it by.
            return logits_1tv.new_zeros(()), best.new_ones((), dtype=torch.int), best

        return model(row, return_logits=True), choose

    reports = run_schedule(forward, training.chunks, rows, forward_only=True)
    group = parallel.groups.pp
    if parallel.is_last_stage:
        chosen = torch.cat(reports)
    else:
        chosen = torch.empty(
            sum(map(len, positions)), dtype=torch.int64, device=positions[0].device
        )
    if parallel.pipeline_size > 1:
        dist.broadcast(chosen, dist.get_global_rank(group, parallel.pipeline_size - 1), group=group)
    return chosen


def _on_this_rank(row: MicroBatch, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Where in this rank's part of a row its `positions` are, and whether; any place where not."""
    part = row.part
    if part is None:
        return positions, torch.ones_like(positions)
    is_it = (part.sources == positions[:, None]) & ~part.is_padding
    return is_it.int().argmax(1), is_it.any(1).long()


def most_likely(logits_kv: Tensor, parallel: Parallel) -> Tensor:
    """[k] int64: the ids with the largest logits, of which each tensor rank has its rows' own.

    The same on every tensor rank; of equal ones the lowest.
    """
    values, ids = logits_kv.float().max(-1)
    if parallel.tensor_size == 1:
        return ids
    ids = ids + parallel.tensor_rank * logits_kv.shape[-1]
    group, size = parallel.groups.tp, parallel.tensor_size
    all_values, all_ids = values.new_empty(size * len(ids)), ids.new_empty(size * len(ids))
    dist.all_gather_into_tensor(all_values, values, group=group)
    dist.all_gather_into_tensor(all_ids, ids, group=group)
    best = all_values.view(size, -1).argmax(0, keepdim=True)
    return all_ids.view(size, -1).gather(0, best)[0]


def _up_to_stop(ids: list[int], stop_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids, 1) if token in stop_ids), None)
    return ids[:end]
