"""Held-out samples as questions with a truth.

Samples are read as training's index reads them (data/index/reading.py): the same kinds, field maps,
prompt pools, videos and limits, under the settings that the checkpoint was trained with. A sample
that leaves its wording open is asked with the first prompt of the pool that training draws from.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvlm.batch import SkippedSample
from nvlm.config import RunConfig, changed
from nvlm.data.index.reading import Reading, SourceReading, read_shard, shard_name
from nvlm.data.index.stored import ReadSample
from nvlm.data.samples.conversations import count_image_marks, keep_turns
from nvlm.data.samples.sample import IMAGE_MARK, Messages, SampleError
from nvlm.data.shards.shard import ByteRange
from nvlm.data.shards.sources import Source, find_all_sources
from nvlm.errors import DataError
from nvlm.evaluate.score import NUM_ANNOTATORS, Truth
from nvlm.places import check_name

# Reasons of what is left out although nothing is wrong with it, or with the sample alone.
NO_QUESTION = "no_question"
TOO_LONG = "too_long"


@dataclass(frozen=True)
class Question:
    """One sample up to its last trained assistant turn, which is the truth."""

    sample_id: str
    source: str
    task: str
    messages: Messages  # up to and including the last turn before the answer
    truth: Truth
    max_num_tiles: int  # most tiles per image
    shard: str  # where the images lie
    images: list[ByteRange] = field(repr=False, default_factory=list)  # in order of use
    sizes: list[tuple[int, int]] = field(repr=False, default_factory=list)  # (width, height)
    num_frames: int = 0  # of a video, which then is each of `images`
    repairs: dict[str, int] = field(default_factory=dict)  # of its text, as in samples/repairs.py

    @property
    def text(self) -> str:
        """The last turn without image marks, for people to read."""
        return self.messages[-1]["content"].replace(IMAGE_MARK, "").strip()

    def left_out(self, error: SampleError) -> SkippedSample:
        return _left_out(self.source, Path(self.shard), self.sample_id, error)


@dataclass
class SourceCounts:
    """What a source of the split has."""

    num_samples: int = 0  # all that its shards hold
    num_chosen: int = 0  # that are asked
    num_without_task: int = 0  # of all questions; they count under the source's name
    left_out: Counter[str] = field(default_factory=Counter)  # by reason


@dataclass
class HeldOut:
    """The questions of a split, and what is not asked."""

    questions: list[Question]  # in order of source, shard and position
    counts: dict[str, SourceCounts]  # by source
    left_out: list[SkippedSample]  # what cannot be read; a sample without a question is no fault


def with_data(config: RunConfig, data_root: Path, split: str) -> RunConfig:
    """A checkpoint's configuration, for the questions of `data_root/split`.

    Raises:
        DataError: `split` is not the name of a folder.
    """
    check_name("--split", split)
    return changed(config, {"data.root": str(data_root), "data.split": split})


def read_questions(config: RunConfig) -> HeldOut:
    """All questions of `data.root/data.split`. No image is decoded.

    Raises:
        DataError: there are no shards, a source's settings do not fit its samples, or no sample has
            a question. A sample that cannot be read is no error: it is in `HeldOut.left_out`.
    """
    found = HeldOut([], {}, [])
    for source in find_all_sources(config).values():
        found.questions += _read_source(config, source, found)
    if not found.questions:
        raise DataError(_nothing_to_ask(config, found))
    return found


def choose_questions(
    found: HeldOut,
    limit_per_task: int | None,
    fit: Callable[[Question], Question] = lambda question: question,
) -> HeldOut:
    """At most so many questions of each task, the same every time; None: all.

    Those whose ids have the lowest CRC-32 are taken: a choice that is fixed, and blind to any
    pattern in the order.

    Args:
        fit: makes a question fit the model; raises `SampleError` where it cannot be asked.

    Raises:
        DataError: none can be asked.
    """
    by_task: dict[str, list[tuple[int, Question]]] = {}
    for position, question in enumerate(found.questions):
        by_task.setdefault(question.task, []).append((position, question))
    chosen: list[tuple[int, Question]] = []
    left_out: list[SkippedSample] = []
    for members in by_task.values():
        num_kept = 0
        for position, question in members if limit_per_task is None else sorted(members, key=_lot):
            if num_kept == limit_per_task:
                break
            try:
                chosen.append((position, fit(question)))
                num_kept += 1
            except SampleError as error:
                left_out.append(question.left_out(error))
    if not chosen:
        first = left_out[0]
        raise DataError(
            f"nothing to ask: {len(left_out):,} questions of {len(found.questions):,} were tried; "
            f"the first is {first.source}/{first.key}: {first.reason}: {first.detail}"
        )
    questions = [question for _, question in sorted(chosen, key=lambda member: member[0])]
    num_chosen = Counter(question.source for question in questions)
    counts = {
        source: SourceCounts(
            counts.num_samples,
            num_chosen[source],
            counts.num_without_task,
            counts.left_out + Counter(s.reason for s in left_out if s.source == source),
        )
        for source, counts in found.counts.items()
    }
    return HeldOut(questions, counts, [*found.left_out, *left_out])


def _read_source(config: RunConfig, source: Source, found: HeldOut) -> list[Question]:
    how = SourceReading.from_config(config, source)
    counts = found.counts[source.name] = SourceCounts()
    asked: list[tuple[Path, Reading, ReadSample]] = []
    for shard in source.shards:
        for reading in read_shard(shard, shard_name(source, shard), how):
            counts.num_samples += 1
            if reading.problem is not None:
                counts.left_out[reading.problem.reason] += 1
                found.left_out.append(_left_out(source.name, shard, reading.key, reading.problem))
            elif reading.sample is not None and _has_question(reading.sample):
                asked.append((shard, reading, reading.sample))
                counts.num_without_task += not reading.sample.sample.task.strip()
            else:
                counts.left_out[NO_QUESTION] += 1
    by_people = _answered_by_ten([read for _, _, read in asked])
    limit = source.settings.max_num_tiles or config.stage.max_num_tiles
    return [
        _question(source.name, shard, reading, read, limit, by_people)
        for shard, reading, read in asked
    ]


def _question(
    source: str,
    shard: Path,
    reading: Reading,
    read: ReadSample,
    max_num_tiles: int,
    by_people: bool,
) -> Question:
    *messages, answer = _up_to_answer(read)
    num_images = count_image_marks(messages)  # those of later turns are not shown
    return Question(
        sample_id=reading.key,
        source=source,
        task=read.sample.task.strip() or source,
        messages=messages,
        truth=_truth(read, answer["content"], by_people),
        max_num_tiles=1 if read.num_frames else max_num_tiles,
        shard=str(shard),
        images=read.images[:num_images],
        sizes=read.sizes[:num_images],
        num_frames=read.num_frames,
        repairs=reading.repairs,
    )


def _has_question(read: ReadSample) -> bool:
    if read.sample.variants:
        return True
    roles = [message["role"] for message in read.sample.turns]
    return roles[-1] == "assistant" and "user" in roles


def _up_to_answer(read: ReadSample) -> Messages:
    """The conversation up to its last answer that is trained."""
    messages = read.sample.conversation(0)
    num_turns = sum(message["role"] == "assistant" for message in messages)
    while num_turns - 1 in read.sample.untrained_turns:
        num_turns -= 1
    return keep_turns(messages, num_turns)


def _truth(read: ReadSample, answer: str, by_people: bool) -> Truth:
    sample = read.sample
    answers = list(sample.accepted) or [answer]
    counts = [round(weight) for weight in sample.accepted.values()]
    is_counted = by_people and sample.kind == "vqa"
    return Truth(answers, counts if is_counted else [], sample.options)


def _answered_by_ten(reads: Sequence[ReadSample]) -> bool:
    """Whether a source's questions were put to ten people each, as VQAv2's were.

    So it is where each question has ten answers, counted as often as they stand or by whole
    weights, and somewhere one was given twice. Ten spellings of one answer are none of that.
    """
    answers = [read.sample.accepted for read in reads if read.sample.kind == "vqa"]
    return (
        bool(answers)
        and all(
            sum(a.values()) == NUM_ANNOTATORS and all(w == round(w) for w in a.values())
            for a in answers
        )
        and any(weight > 1 for a in answers for weight in a.values())
    )


def _lot(member: tuple[int, Question]) -> tuple[int, int]:
    return zlib.crc32(member[1].sample_id.encode()), member[0]


def _left_out(source: str, shard: Path, key: str, error: SampleError) -> SkippedSample:
    return SkippedSample(source, shard.name, key, error.reason, error.detail)


def _nothing_to_ask(config: RunConfig, found: HeldOut) -> str:
    folder = Path(config.data.root) / config.data.split
    reasons = sum((counts.left_out for counts in found.counts.values()), Counter())
    said = ", ".join(f"{reason} {number:,}" for reason, number in sorted(reasons.items()))
    num_samples = sum(counts.num_samples for counts in found.counts.values())
    message = f"{folder}: nothing to ask: {num_samples:,} samples"
    if said:
        message += f", left out as {said}"
    if found.left_out:
        first = found.left_out[0]
        message += f"; the first is {first.shard}, sample {first.key or '(none)'}: {first.detail}"
    if reasons.get(NO_QUESTION):
        message += (
            "; documents and texts have no question: give samples a `question` and an `answer`, or "
            "a conversation"
        )
    return message
