"""Kinds of samples: what a sample's JSON says, and the conversation it becomes.

The kind is the JSON's `"kind"`, or follows from its fields. TEXT is never empty; images are used in
the order of their members.

    conversation     {"messages": [{"role": "user", "content": "<image>\\nWhat?"},
                                   {"role": "assistant", "content": TEXT}, ...]}
                     or {"conversations": [{"from": "human", "value": TEXT}, {"from": "gpt", ...}]}
    caption          {"caption": TEXT or [TEXT, ...]}, or the member KEY.txt
    vqa              {"question": TEXT, "answer": TEXT}, or several "answers": [TEXT, ...] and,
                     if some are more likely, "answer_weights": [NUMBER, ...]
    multiple_choice  {"question": TEXT, "choices": [TEXT, ...], "correct": NUMBER from 0}
    ocr              {"kind": "ocr", "text": TEXT}
    ocr_grounded     {"regions": [{"text": TEXT, "box": [x0, y0, x1, y1]} or {"quad": 8 numbers}]}
    ocr_referring    {"kind": "ocr_referring", "regions": ...}
    interleaved      {"parts": [{"text": TEXT}, {"image": 0}, {"text": TEXT}, {"image": 1}, ...]}
    text             {"text": TEXT}, without images

An assistant turn with `"weight": 0` is context: none of its tokens are trained. Beside any kind but
documents, `"system": TEXT` is the system turn. `"loss_weight": NUMBER` multiplies what the sample's
tokens count in the loss. `"alignment_level": NUMBER`, from 0, says how well image and text agree
(`stage.alignment`). `"task"` names the sample's task, for its prompt pool and in evaluations.
Fields that would change what is trained and that are not read here (`NOT_READ`) are refused;
importers take most of them over (importers/spellings.py). All others are left alone. Questions and
prompts come after all images, unless a question places them itself, as conversations do, by a mark
`<image>` for each. A conversation is an optional system turn, then user and assistant by turns; its
list of turns may be the whole JSON. `interleaved` and `text` are documents: no roles, trained on
all their text. A whole number in the place of a short text is its text.

A sample with several prompts, answers or regions is used in one of its ways at a time
(`Sample.variants`); lengths.py says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nvlm.data.samples.conversations import (
    begins_with_image,
    read_conversation,
    read_document,
    read_untrained_turns,
)
from nvlm.data.samples.field_map import FieldMap
from nvlm.data.samples.prompts import Pools, fields_of, load_prompt_pools
from nvlm.data.samples.sample import Messages, SampleError
from nvlm.data.samples.text_members import (
    read_fields,
    refuse_named_images,
    shown,
    text_without_marks,
)
from nvlm.data.samples.variants import POOL_FIELDS, Variant, read_variants
from nvlm.errors import DataError

KINDS = (
    "conversation", "caption", "vqa", "multiple_choice", "ocr", "ocr_grounded", "ocr_referring",
    "interleaved", "text",
)  # fmt: skip
NOT_READ = {
    "history", "options", "tools", "functions", "system_prompt", "loss_mask", "chosen", "rejected",
    "videos", "audio", "audios",
}  # fmt: skip
_MAX_LOSS_WEIGHT = 1_000_000


@dataclass(frozen=True)
class Sample:
    """A sample as it is stored, before one of its ways to be used is chosen."""

    kind: str
    task: str
    turns: Messages = field(default_factory=list)  # as stored; empty where there are variants
    # User turn and answer of each way to use the sample.
    variants: list[tuple[str, str]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)  # of the variants; empty: all alike
    system: str = ""  # the system turn of a sample with variants
    # Turns that are context only, numbered from 0 as questions with their answers.
    untrained_turns: frozenset[int] = frozenset()
    loss_weight: float = 1.0  # multiplies what its tokens count in the loss
    # How well image and text agree; None: it does not begin with an image, or nobody asks.
    alignment_level: int | None = None
    # For evaluation: every answer to the first variant's question, with its weight; of a multiple
    # choice the texts behind the letters.
    accepted: dict[str, float] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)

    def conversation(self, variant: int) -> Messages:
        """The conversation, or the parts of a document."""
        if not self.variants:
            return self.turns
        question, answer = self.variants[variant]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [
            *system,
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]


class SampleParser:
    """Reads the text members of a source's samples."""

    def __init__(
        self,
        pools: Pools | None = None,
        pool_name: str | None = None,
        field_map: FieldMap | None = None,
        num_levels: int | None = None,
    ):
        """
        Args:
            pools: None: those that come with nvlm.
            pool_name: the pool that asks for all samples of the source.
            field_map: of a folder prepared for Energon.
            num_levels: of alignment, of which each sample that begins with an image has to bring
                one; None: nobody asks.

        Raises:
            DataError: there is no pool `pool_name`.
        """
        self._num_levels = num_levels
        self._pools = load_prompt_pools(None) if pools is None else pools
        self._pool_name = pool_name
        self.field_map = field_map
        if pool_name is not None and pool_name not in self._pools:
            raise DataError(
                f"no prompt pool {pool_name!r}; there are {', '.join(sorted(self._pools))}"
            )

    def parse(self, texts: dict[str, bytes], num_images: int, num_frames: int = 0) -> Sample:
        """The sample whose text members (extension -> content) these are.

        Args:
            num_images: of the sample, a video's frames counted.
            num_frames: frames of its video, which stand where the text has `<video>`.

        Raises:
            SampleError: anything that breaks the rules above.
            DataError: the source's prompt pool cannot ask for such samples.
        """
        value = read_fields(texts, self.field_map)
        sample = self._parse(value, num_images, num_frames)
        if self._num_levels is None or not begins_with_image(sample.conversation(0)):
            return sample
        return replace(sample, alignment_level=_read_level(value, self._num_levels))

    def _parse(self, value: dict[str, Any], num_images: int, num_frames: int) -> Sample:
        if not NOT_READ.isdisjoint(value):
            name = next(name for name in value if name in NOT_READ)
            raise SampleError(
                "fields", f"the field {name} of a shard is not read, and would change what is "
                "trained; `nvlm data import` takes it over or says why not"
            )  # fmt: skip
        if num_images == 0:
            refuse_named_images(value)
        kind = _kind(value, num_images)
        task = value.get("task")
        task = task if isinstance(task, str) else ""
        system = _read_system(value) if "system" in value else ""
        loss_weight = _read_loss_weight(value) if "loss_weight" in value else 1.0
        if kind == "conversation":
            turns = read_conversation(value, num_images, num_frames, system)
            untrained = read_untrained_turns(value)
            return Sample(kind, task, turns, untrained_turns=untrained, loss_weight=loss_weight)
        if kind in ("interleaved", "text"):
            if system:
                raise SampleError("fields", f"kind {kind} has no system turn")
            turns = read_document(value, kind, num_images)
            return Sample(kind, task, turns, loss_weight=loss_weight)
        if num_images == 0 and kind not in ("vqa", "multiple_choice"):
            raise SampleError("image_count", f"kind {kind} needs an image, there is none")
        variants = read_variants(
            kind, value, num_images, lambda pool: self._prompts(pool, kind, task)
        )
        return Sample(
            kind,
            task,
            variants=[(question, answer) for question, answer, _ in variants],
            weights=_without_equal([weight for _, _, weight in variants]),
            system=system,
            loss_weight=loss_weight,
            accepted=_answers_of_first(variants),
            options=[text.strip() for text in value["choices"]]
            if kind == "multiple_choice"
            else [],
        )

    def _prompts(self, pool: str, kind: str, task: str) -> list[str]:
        wanted = POOL_FIELDS[pool]
        if pool == kind and self._pool_name is not None:
            pool = self._pool_name
        elif pool == kind and task in self._pools and fields_of(self._pools[task][0]) == wanted:
            pool = task
        prompts = self._pools[pool]
        if fields_of(prompts[0]) != wanted:
            fields = ", ".join(f"{{{name}}}" for name in sorted(wanted)) or "no fields"
            raise DataError(
                f"prompt pool {pool!r} cannot ask for samples of kind {kind}: their prompts have "
                f"{fields}"
            )
        return prompts


def _kind(value: dict[str, Any], num_images: int) -> str:
    if "kind" in value:
        if value["kind"] not in KINDS:
            raise SampleError("fields", f"kind {shown(value['kind'])}, expected {', '.join(KINDS)}")
        return value["kind"]
    for name, kind in (
        ("messages", "conversation"), ("conversations", "conversation"), ("parts", "interleaved"),
        ("regions", "ocr_grounded"), ("choices", "multiple_choice"), ("question", "vqa"),
        ("caption", "caption"),
    ):  # fmt: skip
        if name in value:
            return kind
    if "text" in value and num_images == 0:
        return "text"
    if "text" in value:
        raise SampleError(
            "fields", '"text" with images is unclear: say "kind": "ocr", or "caption"'
        )
    found = ", ".join(map(str, list(value)[:8])) or "nothing"
    raise SampleError(
        "fields", f'no "messages", "caption", "question" or other fields of a kind; it has {found}'
    )


def _read_system(value: dict[str, Any]) -> str:
    system = value["system"]
    return "" if system in (None, "") else text_without_marks(system, "system")


def _read_loss_weight(value: dict[str, Any]) -> float:
    weight = value["loss_weight"]
    is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    if not is_number or not 0 <= weight <= _MAX_LOSS_WEIGHT:
        raise SampleError(
            "fields",
            f"loss_weight is {shown(weight)}, expected a number from 0 to {_MAX_LOSS_WEIGHT}",
        )
    if weight == 0:
        raise SampleError("untrained", "loss_weight is 0, so nothing of it is trained")
    return float(weight)


def _read_level(value: dict[str, Any], num_levels: int) -> int:
    if "alignment_level" not in value:
        raise SampleError(
            "alignment_level",
            "no field alignment_level, which stage.alignment asks of samples that begin with an "
            "image; `nvlm data levels` makes them",
        )
    level = value["alignment_level"]
    if type(level) is not int or not 0 <= level < num_levels:
        raise SampleError(
            "alignment_level",
            f"alignment_level is {shown(level)}, expected a number from 0 to {num_levels - 1} "
            "(stage.alignment.num_levels)",
        )
    return level


def _answers_of_first(variants: list[Variant]) -> dict[str, float]:
    first = variants[0][0]
    answers: dict[str, float] = {}
    for question, answer, weight in variants:
        if question == first:
            answers[answer] = answers.get(answer, 0.0) + weight
    return answers


def _without_equal(weights: list[float]) -> list[float]:
    return [] if len(set(weights)) == 1 else weights
