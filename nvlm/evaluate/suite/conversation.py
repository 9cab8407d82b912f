"""What the model reads of a question: system message, examples, and the question itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvlm.data.samples.sample import IMAGE_MARK, Messages
from nvlm.evaluate.benchmarks.entry import Benchmark, ImageSource, Item
from nvlm.evaluate.suite.settings import Settings

ANSWER_MARK = "Answer:"
# Asks for reasoning behind whatever form the benchmark's own prompt asks for.
_REASONING = (
    f"First reason step by step. Then write `{ANSWER_MARK}` and after it only the final answer, in "
    "the form that is asked for above."
)


@dataclass(frozen=True)
class Conversation:
    """Turns up to the one that is to be answered."""

    messages: Messages
    images: Sequence[ImageSource]  # in the order of their marks
    num_shot_images: int  # of the examples; they come first


def converse(
    benchmark: Benchmark, item: Item, shots: Sequence[Item], settings: Settings
) -> Conversation:
    """The examples as earlier turns, pictures and texts interleaved (as MM1 is tested: McKinzie et
    al. 2024), then the question.

    `shots_text_only` leaves the examples' images out: what remains is what their texts give.
    """
    messages: Messages = []
    if benchmark.system_message:
        messages.append({"role": "system", "content": benchmark.system_message})
    images: list[ImageSource] = []
    for shot in shots:
        assert benchmark.answer is not None, "see `choose`"
        text = benchmark.prompt(shot)
        if settings.shots_text_only:
            text = text.replace(IMAGE_MARK, "").strip()
        else:
            images += shot.images
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": benchmark.answer(shot)})
    num_shot_images = len(images)
    text = benchmark.prompt(item)
    if settings.chain_of_thought:
        text = f"{text}\n{_REASONING}"
    messages.append({"role": "user", "content": text})
    return Conversation(messages, [*images, *item.images], num_shot_images)


def final_answer(text: str, chain_of_thought: bool) -> tuple[str, bool]:
    """What is scored of an answer, and whether it is the part that was asked for.

    Behind reasoning that is what follows the last `Answer:`. Where that is missing, the whole
    text is scored, and the summary says how often that was so.
    """
    if not chain_of_thought:
        return text, True
    _, mark, last = text.rpartition(ANSWER_MARK)
    return (last.strip().strip("*").strip(), True) if mark else (text, False)
