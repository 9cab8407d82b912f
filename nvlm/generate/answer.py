"""`nvlm generate`: one question about image files, answered by a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nvlm.config.schema import ParallelConfig
from nvlm.data.samples.repairs import REPAIRS
from nvlm.data.samples.sample import SampleError
from nvlm.errors import DataError
from nvlm.generate.asked import messages_of_prompt, read_images
from nvlm.generate.request import Sampling
from nvlm.generate.thrift import Thrift
from nvlm.printing import say


def answer(
    checkpoint: Path,
    prompt: str,
    images: Sequence[Path],
    sampling: Sampling,
    system: str | None = None,
    layout: ParallelConfig | None = None,
    show: Callable[[str], None] = lambda text: None,
    thrift: Thrift | None = None,
) -> str:
    """The checkpoint's answer, tiled and tokenised as its training stage says.

    What training would repair about an image is repaired and said on standard error.

    Args:
        prompt: the user turn. Without an `<image>` mark, each image gets one in front of it.
        images: files, in the order of their marks; of the formats and within the
            `data.max_image_megapixels` of the checkpoint's training.
        system: in place of the training stage's system message.
        layout: see `Engine`.
        show: called with each new piece of the text, on the first process.
        thrift: see `Engine`.

    Returns:
        the text on the processes that lead a model replica, elsewhere none.

    Raises:
        CheckpointError, ConfigError: as `Engine`.
        DataError: an image cannot be read, marks and images differ in number, the prompt is no
            text, or prompt and answer are too long. Before the model is loaded.
    """
    messages = messages_of_prompt(prompt, len(images), system)
    # Imports torch: what is wrong with the prompt is reported before.
    from nvlm.generate.engine import Engine
    from nvlm.generate.session import Session
    from nvlm.parallel.groups import is_main_process

    with Engine(checkpoint, layout, thrift=thrift) as engine:
        try:
            pictures, repaired = read_images(images, engine.config.data.max_image_megapixels)
        except SampleError as error:
            raise DataError(f"--image {error.detail}") from None
        if is_main_process():
            for path, repair in repaired:
                say(f"--image {path}: {REPAIRS[repair]}", sys.stderr)
        question = engine.prepare(messages, pictures, sampling.max_new_tokens)
        engine.load()
        with Session(engine) as session:
            if not engine.parallel.is_model_parallel_main:
                session.follow()
                return ""
            session.add("", question, sampling)
            text = ""
            while session.num_open:
                for progress in session.step():
                    text += progress.text
                    if is_main_process():
                        show(progress.text)
            return text
