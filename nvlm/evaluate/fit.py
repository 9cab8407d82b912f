"""A question made to fit: as many tiles per image as training would give the same sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nvlm.config import RunConfig
from nvlm.data.images.tiling import choose_grid
from nvlm.data.samples.sample import SampleError
from nvlm.data.text.encode import SampleEncoder
from nvlm.errors import DataError
from nvlm.evaluate.questions import TOO_LONG, Question
from nvlm.generate.greedy import check_positions


def fit_question(
    config: RunConfig, encoder: SampleEncoder, max_new_tokens: int, question: Question
) -> Question:
    """The question with the tiles that it gets.

    Raises:
        SampleError: it has no room in the model's positions.
    """
    question = replace(question, max_num_tiles=_most_tiles(config, encoder, question))
    grids = _grids(config, question, question.max_num_tiles)
    num_tokens = len(encoder.encode_prompt(question.messages, grids)[0])
    try:
        check_positions(config, num_tokens, max_new_tokens)
    except DataError as error:
        raise SampleError(TOO_LONG, str(error)) from None
    return question


def _most_tiles(config: RunConfig, encoder: SampleEncoder, question: Question) -> int:
    """Fewer than the source's where the whole sample would not fit a training sequence else.

    The rule of order/lengths.py, whose plans need an index. Training would go on to cut trailing
    turns; here the last one is asked for.
    """
    stage = config.stage
    whole = [*question.messages, {"role": "assistant", "content": question.truth.answers[0]}]
    for limit in range(question.max_num_tiles, 1, -1):
        grids = _grids(config, question, limit)
        num_tiles = sum(encoder.visual.num_tiles(grid) for grid in grids)
        budget = stage.max_tiles_per_sequence
        if (budget is None or num_tiles <= budget) and (
            not encoder.visual.tiles_take_room
            or len(encoder.encode(whole, grids).tokens) <= stage.sequence_length
        ):
            return limit
    return 1


def _grids(config: RunConfig, question: Question, limit: int) -> Sequence[tuple[int, int]]:
    image_size, tiling = config.model.vision.image_size, config.stage.tiling
    return [choose_grid(w, h, limit, image_size, tiling) for w, h in question.sizes]
