"""What an evaluation reads of a question, and the row that it writes of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nvlm.data.index.stored import decode_images
from nvlm.data.samples.repairs import noting_repairs
from nvlm.data.shards.shard import ShardReader
from nvlm.evaluate.questions import Question
from nvlm.evaluate.score import score_answer


def read_images(
    reader: ShardReader, question: Question, max_megapixels: float
) -> tuple[list[NDArray[np.uint8]], dict[str, int]]:
    """The question's images, each [height, width, 3] RGB, and what was repaired in the sample.

    Raises:
        SampleError: an image cannot be decoded.
    """
    with noting_repairs() as repairs:
        images = list(
            decode_images(
                reader, question.shard, question.images, question.num_frames, max_megapixels
            )
        )
    repairs.update(question.repairs)
    return images, dict(repairs)


def answer_row(question: Question, answer: str, repairs: Mapping[str, int]) -> dict[str, Any]:
    """The question, its truth, the answer and what that scores."""
    score = score_answer(answer, question.truth)
    return {
        "sample_id": question.sample_id,
        "source": question.source,
        "task": question.task,
        "question": question.text,
        **question.truth.as_fields(),
        "answer": answer,
        "metric": question.truth.metric,
        "score": score,
        "correct": score == 1,
        **({"repaired": dict(repairs)} if repairs else {}),
    }
