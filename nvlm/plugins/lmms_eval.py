"""The model `nvlm` of lmms-eval: `--model nvlm --model_args pretrained=CHECKPOINT`.

Under torchrun lmms-eval takes each process for a whole model with a share of the questions; here a
replica's processes answer theirs together (asked_by_all.py).
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts  # type: ignore
from lmms_eval.api.model import lmms  # type: ignore

from nvlm import platform
from nvlm.config.schema import ParallelConfig
from nvlm.data.text.encode import EncodedPrompt
from nvlm.errors import ConfigError, DataError, NvlmError
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.parallel.groups import is_main_process
from nvlm.plugins.asked_by_all import answer_share
from nvlm.plugins.lmms_eval_requests import SETTINGS, as_trained, sampling_of
from nvlm.printing import say


class NVLM(lmms):
    """A checkpoint that answers lmms-eval's chat messages, at any tensor and pipeline size."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        tensor: int | None = None,
        pipeline: int | None = None,
        max_num_tiles: int | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **others: Any,
    ):
        """
        Args:
            pretrained: what `Engine` takes.
            tensor, pipeline: layout. Both None: see `Engine`.
            max_num_tiles: most tiles per image. None: the stage's.
            batch_size, max_batch_size, device: what lmms-eval always gives; as many questions are
                answered at once as memory allows, on the process's own device.

        Raises:
            ConfigError: an argument of another name, or see `Engine`.
        """
        super().__init__()
        if others:
            raise ConfigError(
                f"--model_args: unknown {', '.join(sorted(others))}; the model nvlm takes "
                "pretrained, tensor, pipeline, max_num_tiles"
            )
        layout = None
        if tensor is not None or pipeline is not None:
            layout = ParallelConfig(tensor=tensor or 1, pipeline=pipeline or 1)
        self._max_num_tiles = max_num_tiles
        self._engine = Engine(pretrained, layout)
        self._engine.load()
        self._is_said: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what it gathers."""
        return platform.current().device()

    def generate_until(self, requests: list) -> list:
        """An answer to each request, greedy unless the task says otherwise."""
        times: Counter[tuple] = Counter()
        share = []
        for request in requests:
            _, to_messages, settings, doc_id, task, split = request.args
            name = (task, split, doc_id)
            sampling = self._sampling(settings, task, seed=times[name])
            times[name] += 1  # a repeated question is drawn anew
            share.append(partial(self._prepare, to_messages, name, sampling))
        return [
            GenerationResult(answer.text, TokenCounts(output_tokens=answer.num_tokens))
            for answer in answer_share(self._engine, share)
        ]

    def loglikelihood(self, requests: list) -> list:
        raise NotImplementedError("the model nvlm answers questions; it has no loglikelihood")

    def generate_until_multi_round(self, requests: list) -> list:
        raise NotImplementedError("the model nvlm answers one round; this task has several")

    def clean(self) -> None:
        """Give the memory back; the process groups stay, since lmms-eval gathers with them."""
        del self._engine
        super().clean()

    def _prepare(
        self, to_messages: Any, name: tuple, sampling: Sampling
    ) -> tuple[EncodedPrompt, Sampling]:
        task, split, doc_id = name
        try:
            messages = to_messages(self.task_dict[task][split][doc_id])
            turns, images = as_trained(messages, self._engine.config.data.max_image_megapixels)
            prompt = self._engine.prepare(
                turns, images, sampling.max_new_tokens, self._max_num_tiles
            )
        except NvlmError as error:
            raise DataError(f"task {task}, {split} document {doc_id}: {error}") from None
        return prompt, sampling

    def _sampling(self, settings: dict[str, Any], task: str, seed: int) -> Sampling:
        """A task's `generation_kwargs`; says of each task once what of them has no effect."""
        if unused := sorted(set(settings) - SETTINGS):
            text = f"task {task}: generation_kwargs that have no effect: {', '.join(unused)}"
            if text not in self._is_said and is_main_process():
                say(text)
            self._is_said.add(text)
        return sampling_of(settings, task, seed)
