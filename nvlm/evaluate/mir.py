"""`nvlm evaluate mir`: the modality integration rate of a checkpoint, on held-out samples.

A sample is read by the model with its answer; image tokens are those that the connector made, text
tokens all others behind the first of them, as in the authors' program. Hidden states are those
behind each decoder layer, the last with the final norm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nvlm.config.schema import ParallelConfig
from nvlm.data.samples.sample import SampleError
from nvlm.data.shards.shard import ShardReader
from nvlm.errors import DataError
from nvlm.evaluate.fit import fit_question
from nvlm.evaluate.modality_integration import layer_distance, modality_integration_rate
from nvlm.evaluate.questions import Question, choose_questions, read_questions, with_data
from nvlm.evaluate.rows import read_images
from nvlm.files import write_text
from nvlm.generate.engine import Engine
from nvlm.parallel.groups import is_main_process, world_size_from_environment
from nvlm.places import check_file
from nvlm.printing import say

if TYPE_CHECKING:
    from nvlm.model.nvlm_d import NVLMD


def measure_mir(
    checkpoint: Path, data_root: Path, split: str, num_samples: int, out: Path
) -> dict[str, Any]:
    """Measure MIR on samples of `data_root/split` that have images, and write it to `out`.

    All processes of a launch share each layer of the one model (tensor parallelism). Hidden states
    stay on the host until all samples are read: layers x tokens x hidden size numbers.

    Args:
        num_samples: at most; spread over the split's tasks, the same every time.

    Returns:
        `mir`, `layers` (each layer's distance), and how many samples and tokens of each kind.

    Raises:
        NvlmError: no checkpoint, no samples with images, or an `out` that cannot be written.
    """
    layout = ParallelConfig(tensor=world_size_from_environment())
    with Engine(checkpoint, layout) as engine:
        config = with_data(engine.config, data_root, split)
        if is_main_process():
            check_file(out, "--out")
        fit = partial(fit_question, config, engine.encoder, 1)
        found = choose_questions(read_questions(config), None, fit)
        questions = _spread([q for q in found.questions if q.images], num_samples)
        if not questions:
            raise DataError(f"{data_root}/{split}: no sample with an image can be read")
        engine.load()
        vision, text, num_read = _features(engine, questions)
        summary = _summary(vision, text, num_read)
    if is_main_process():
        write_text(out, json.dumps(summary, indent=2) + "\n")
        say(
            f"modality integration rate {summary['mir']:.4f} of {num_read:,} samples, "
            f"{summary['vision_tokens']:,} image and {summary['text_tokens']:,} text tokens: {out}"
        )
    return summary


def _spread(questions: Sequence[Question], num_samples: int) -> list[Question]:
    """One task after the other, in turn, until there are enough."""
    by_task: dict[str, list[Question]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question)
    longest = max(map(len, by_task.values()), default=0)
    turns = [some[at] for at in range(longest) for some in by_task.values() if at < len(some)]
    return turns[:num_samples]


def _summary(vision: list[Tensor], text: list[Tensor], num_read: int) -> dict[str, Any]:
    counts = {"image": len(vision[0]), "text": len(text[0])} if num_read else {"image": 0}
    if min(counts.values()) < 2:
        raise DataError(
            "the modality integration rate compares image tokens with text tokens in the decoder, "
            f"and this model's samples have {counts}"
        )
    distances = [layer_distance(*of_layer) for of_layer in zip(vision, text, strict=True)]
    return {
        "mir": modality_integration_rate(distances),
        "layers": distances,
        "samples": num_read,
        "vision_tokens": counts["image"],
        "text_tokens": counts["text"],
        "hidden_size": vision[0].shape[1],
    }


def _features(
    engine: Engine, questions: Sequence[Question]
) -> tuple[list[Tensor], list[Tensor], int]:
    """Of each layer the features of image tokens [n, h] and of text tokens [m, h], on the host."""
    vision: list[list[Tensor]] = []
    text: list[list[Tensor]] = []
    num_read = 0
    with ShardReader() as reader:
        for question in questions:
            try:
                images, _ = read_images(reader, question, engine.config.data.max_image_megapixels)
            except SampleError:
                continue
            prompt = engine.prepare(question.messages, images, 1, question.max_num_tiles)
            answer = engine.tokenizer.encode(question.truth.answers[0], add_special_tokens=False)
            tokens = [*prompt.tokens.tolist(), *answer]
            with layer_outputs(engine.model) as outputs:
                engine.generate(
                    tokens,
                    torch.from_numpy(prompt.tiles),
                    1,
                    stop_ids=(),
                    alignment=prompt.alignment and prompt.alignment.followed_by(len(answer)),
                    grids=prompt.grids,
                )
            image_id = engine.encoder.tokenizer.image_id
            is_image = torch.tensor([token == image_id for token in tokens])
            first = int(is_image.nonzero()[0]) if is_image.any() else len(tokens)
            is_text = ~is_image
            is_text[:first] = False
            vision.append([states[is_image] for states in outputs])
            text.append([states[is_text] for states in outputs])
            num_read += 1
    return _by_layer(vision), _by_layer(text), num_read


def _by_layer(samples: list[list[Tensor]]) -> list[Tensor]:
    return [torch.cat(layer) for layer in zip(*samples, strict=True)]


@contextmanager
def layer_outputs(model: NVLMD) -> Iterator[list[Tensor]]:
    """What the next forward pass gives behind each layer [t, h], the last with the final norm."""
    decoder: Any = model.language_model.decoder
    outputs: list[Tensor] = []

    def keep(_: object, __: object, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        assert states.shape[1] == 1, "one sample at a time"
        on_host = torch.empty(states[:, 0].shape, dtype=states.dtype)
        outputs.append(on_host.copy_(states[:, 0]))

    kept = [*decoder.layers[:-1], decoder.final_layernorm]
    handles = [module.register_forward_hook(keep) for module in kept]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
