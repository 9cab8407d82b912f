"""A model that answers: on one process, or at any layout under torchrun."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from nvlm import platform
from nvlm.config.schema import ModelConfig, ParallelConfig
from nvlm.data.samples.sample import Messages
from nvlm.data.text.chat import ChatTokenizer, open_tokenizer
from nvlm.data.text.encode import EncodedPrompt, SampleEncoder
from nvlm.data.text.prepare import prepare_prompt
from nvlm.errors import DataError
from nvlm.generate.engine_layout import config_for_generation
from nvlm.generate.greedy import check_positions, generate_greedy
from nvlm.generate.model_folder import find_model
from nvlm.generate.thrift import Thrift
from nvlm.launch import num_local_processes
from nvlm.parallel.groups import (
    Parallel,
    initialize,
    leave_groups,
    shut_down,
    world_size_from_environment,
)
from nvlm.sizes.visual import Grid

if TYPE_CHECKING:
    from nvlm.data.text.alignment import EncodedAlignment
    from nvlm.data.text.beside import EncodedBeside
    from nvlm.model.nvlm_d import NVLMD

# For keys and values of questions; the rest is for the activations of their prompts.
_SHARE_OF_MEMORY = 0.7


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt."""

    text: str  # without special tokens and the spaces around it
    prompt_ids: list[int]
    answer_ids: list[int]  # up to and including the end of the turn, where it came to that


class Engine:
    """All that answering needs: layout, tokenizer, encoder, configuration and, loaded, the model.

    Making one refuses what can be refused without weights; `load` makes the process groups and
    reads them. As a context manager it ends the process groups on leaving. Every process of a
    launch makes one and calls the same methods with the same arguments.

    Attributes:
        checkpoint: the folder that is read.
        config: the checkpoint's configuration with the layout in use.
        encoder: of prompts, as the checkpoint's training encoded its samples, but for placeholders
            of tokens that `thrift` merges into others.
        thrift: what is kept of prompts.
        tokenizer: transformers', to read answers with.
        stop_ids: tokens that end an answer: the end of a turn, and what an export's
            `generation_config.json` names besides.
        parallel, model: this process's place and pipeline stage; there once `load` returned.
        max_cache_tokens: for which the replica's processes have memory; there once `load` returned.
        at_end: what sessions that were made of it want to be called before the groups end, with the
            failure that they end for, if it is one.
    """

    parallel: Parallel
    max_cache_tokens: int

    def __init__(
        self,
        checkpoint: str | Path,
        layout: ParallelConfig | None = None,
        wants_replicas: bool = False,
        thrift: Thrift | None = None,
    ):
        """
        Args:
            checkpoint: a checkpoint folder, a run folder (its latest), or a Hugging Face folder
                like the released NVLM-D-72B, such as `nvlm convert to-hf` writes. Its `config.json`
                says how images and prompts become its sequences, and it is read as it is.
            layout: tensor and pipeline sizes; None: `engine_layout.default_layout`. The processes
                that are left over are replicas.
            wants_replicas: without a layout, as many replicas as there are processes, where the
                model fits each of their devices.
            thrift: what is kept of prompts; None: all.

        Raises:
            CheckpointError: there is no whole checkpoint.
            ConvertError: the Hugging Face folder is not whole, or of another architecture.
            ConfigError: the number of processes does not fit the layout, or the model the devices.
            DataError: the tokenizer is missing or does not fit the model.
        """
        self._folder = find_model(checkpoint)
        self.checkpoint = self._folder.path
        self._world_size = world_size_from_environment()
        self.config = config_for_generation(
            self._folder.config,
            layout,
            self._world_size,
            num_local_processes(),
            platform.current().machine().memory_bytes,
            wants_replicas,
        )
        name = self.config.model.tokenizer
        self.tokenizer = open_tokenizer(name)
        chat = ChatTokenizer(
            self.tokenizer, self.config.model.image_token, name=f"model.tokenizer {name}"
        )
        self.thrift = thrift or Thrift()
        _check_thrift(self.thrift, self.config.model, self.checkpoint)
        self.encoder = SampleEncoder.from_config(self.config, chat)
        visual = self.encoder.visual
        num_kept = self.thrift.num_tokens_per_tile(visual.num_tokens_per_tile)
        self.encoder.visual = replace(visual, num_tokens_per_tile=num_kept)
        self.stop_ids = chat.stop_ids | {*self._folder.stop_ids}
        self._is_loaded = False
        self.at_end: list[Callable[[BaseException | None], None]] = []

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, _: object, failure: BaseException | None, *__: object) -> None:
        self._close_sessions(failure)
        if self._is_loaded:
            leave_groups(has_failed=failure is not None)
            self._is_loaded = False

    def load(self) -> None:
        """Read the weights into a model in evaluation mode.

        Raises:
            CheckpointError: a file has other bytes than were written, or does not fit the model.
            ConvertError: a tensor of a Hugging Face folder holds what it should not.
        """
        # Imported late: Megatron-core may only be imported once `initialize` chose the platform.
        self.parallel = initialize(self.config, self._world_size)
        self._is_loaded = True
        from nvlm.model.nvlm_d import build_model

        self._folder.check_contents()
        self.model = build_model(self.config, self.parallel, to_generate=True)
        self._folder.read_weights(self.model, self.parallel)
        self.model.eval()
        self.max_cache_tokens = _max_cache_tokens(self.model, self.parallel)

    def close(self) -> None:
        """End the process groups, if `load` made them."""
        self._close_sessions(None)
        if self._is_loaded:
            shut_down()
            self._is_loaded = False

    def _close_sessions(self, failure: BaseException | None) -> None:
        for close in [*self.at_end]:
            close(failure)

    def prepare(
        self,
        messages: Messages,
        images: Sequence[NDArray[np.uint8]],
        max_new_tokens: int,
        max_num_tiles: int | Sequence[int] | None = None,
    ) -> EncodedPrompt:
        """Tokens and tiles of a question; needs no weights.

        Args:
            messages: up to the turn that is to be answered.
            images: each [height, width, 3] RGB, in the order of their marks.
            max_num_tiles: most tiles per image, or of each image. None: the stage's.

        Raises:
            DataError: marks and images differ in number, or prompt and answer have more tokens than
                the model has positions.
        """
        prompt = prepare_prompt(self.config, self.encoder, messages, images, max_num_tiles)
        check_positions(self.config, len(prompt.tokens), max_new_tokens)
        return prompt

    def answer(self, prompt: EncodedPrompt, max_new_tokens: int) -> Answer:
        """The most likely answer, token by token, up to the end of the turn."""
        prompt_ids = prompt.tokens.tolist()
        answer_ids = self.generate(
            prompt_ids,
            torch.from_numpy(prompt.tiles),
            max_new_tokens,
            stop_ids=self.stop_ids,
            beside=prompt.beside,
            alignment=prompt.alignment,
            grids=prompt.grids,
        )
        return Answer(self.text_of(answer_ids), prompt_ids, answer_ids)

    def text_of(self, ids: Sequence[int]) -> str:
        """An answer's text: without special tokens and the spaces around it."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def generate(
        self,
        prompt_ids: Sequence[int],
        tiles: Tensor,
        max_new_tokens: int,
        stop_ids: Collection[int],
        beside: EncodedBeside | None = None,
        alignment: EncodedAlignment | None = None,
        grids: tuple[Grid, ...] = (),
    ) -> list[int]:
        """See `generate_greedy`."""
        return generate_greedy(
            self.model,
            self.config,
            self.encoder.tokenizer.image_id,
            prompt_ids,
            tiles,
            max_new_tokens,
            stop_ids,
            self.thrift,
            beside,
            alignment,
            grids,
        )


def _check_thrift(thrift: Thrift, model: ModelConfig, checkpoint: Path) -> None:
    """Raise `DataError` where `model` cannot answer with a share of its prompts."""
    if thrift.visual_tokens != 1 and model.fusion != "decoder_only":
        raise DataError(
            f"{checkpoint}: a share of visual tokens to keep is for models that read them in their "
            f"sequence, and model.fusion is {model.fusion}; keep all"
        )
    if thrift.visual_tokens != 1 and model.deepstack != "none":
        raise DataError(
            f"{checkpoint}: which visual tokens are merged is chosen by their embeddings, and "
            "model.deepstack adds to each behind later layers; keep all"
        )
    if thrift.cache != 1 and model.sees_both_ways:
        raise DataError(
            f"{checkpoint}: a share of the cache to keep is chosen by causal attention, and "
            "model.visual_attention is bidirectional; keep all"
        )


def _max_cache_tokens(model: NVLMD, parallel: Parallel) -> int:
    """Of which the keys and values take `_SHARE_OF_MEMORY` of what is free, the same everywhere."""
    bytes_per_token = sum(
        2 * layer.num_groups * layer.head_dim * layer.dtype.itemsize
        for layer in model.cached_layers()
    )
    free = int(_SHARE_OF_MEMORY * platform.current().free_memory_bytes())
    found = torch.tensor(free // bytes_per_token, device=platform.current().device())
    dist.all_reduce(found, dist.ReduceOp.MIN, group=parallel.groups.mp)
    return int(found)
