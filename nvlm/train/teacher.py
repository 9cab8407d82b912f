"""A teacher beside the model that trains: `train.distill`.

It is built on the same processes at the same layout, takes every micro-batch before the student,
and keeps nothing for a backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nvlm.batch import MicroBatch
from nvlm.checkpoint_files import content_hash, read_config, read_progress
from nvlm.checkpoint_io import resolve_checkpoint
from nvlm.config import RunConfig, changed
from nvlm.config.schema import ModelConfig, RecomputeConfig
from nvlm.data.text.chat import load_chat_tokenizer
from nvlm.errors import CheckpointError
from nvlm.parallel.groups import Parallel
from nvlm.safe_loading import check_readable
from nvlm.train.checkpoint import load_weights
from nvlm.train.optim import bare

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from nvlm.model.nvlm_d import NVLMD


def find_teacher(config: RunConfig, resumed: Path | None = None) -> Path | None:
    """The checkpoint that `train.distill` names; None where there is no teacher.

    Args:
        resumed: the run's own checkpoint, if it goes on from one.

    Raises:
        CheckpointError: there is none, it does not fit the student, or it is another than the one
            that the run has begun with.
        ConfigError: it does not fit the run's layout or sequences.
        DataError: a tokenizer is missing.
    """
    settings = config.train.distill
    if settings is None:
        return None
    checkpoint = resolve_checkpoint(settings.teacher)
    check_readable(checkpoint)
    for problem in _misfits(config.model, read_config(checkpoint).model):
        raise CheckpointError(
            f"train.distill.teacher {checkpoint}: {problem}: the two read the same tokens, and say "
            "them from the same vocabulary"
        )
    teacher_config(config, checkpoint)
    before = (read_progress(resumed) or {}).get("teacher") if resumed else None
    if before is not None and before != content_hash(checkpoint):
        raise CheckpointError(
            f"{resumed}: its teacher was another than {checkpoint}: name the checkpoint in "
            "train.distill.teacher that the run has begun with (of a run folder the newest is "
            "taken), or use another run.dir"
        )
    return checkpoint


def stored_teacher(config: RunConfig) -> RunConfig | None:
    """The configuration of the checkpoint that `train.distill` names; None without a teacher.

    Raises:
        CheckpointError: there is none.
    """
    settings = config.train.distill
    return None if settings is None else read_config(resolve_checkpoint(settings.teacher))


def _misfits(student: ModelConfig, teacher: ModelConfig) -> Iterator[str]:
    for key, ours, theirs in (
        ("model.fusion", student.fusion, teacher.fusion),
        ("model.deepstack tiles", student.stacks_tiles, teacher.stacks_tiles),
        ("model.vision.image_size", student.vision.image_size, teacher.vision.image_size),
        ("tokens of a tile", student.num_tokens_per_tile, teacher.num_tokens_per_tile),
        ("model.image_token", student.image_token, teacher.image_token),
    ):
        if ours != theirs:
            yield f"{key} is {theirs} there and {ours} in this run"
    if teacher.language.moe is not None:
        yield "it has experts (model.language.moe), whose routers would count its tokens too"
    if student.tokenizer != teacher.tokenizer:
        own, other = (
            load_chat_tokenizer(model.tokenizer, model.image_token).fingerprint
            for model in (student, teacher)
        )
        if own != other:
            yield f"model.tokenizer is another: {teacher.tokenizer}, and {student.tokenizer} here"


def teacher_config(config: RunConfig, checkpoint: Path) -> RunConfig:
    """The run's configuration with the teacher for its model.

    Raises:
        ConfigError: its sizes do not fit the run's layout or sequences.
    """
    theirs = read_config(checkpoint)
    changes: dict[str, Any] = {
        "model": theirs.model,
        "stage.adapters": theirs.stage.adapters,
        "stage.freeze": [],
        "train.distill": None,
        "train.recompute": RecomputeConfig(),
    }
    return changed(config, changes, where=f"train.distill.teacher {checkpoint}")


class Teacher:
    """The frozen model, and what its distributions count in the loss."""

    def __init__(self, config: RunConfig, parallel: Parallel, checkpoint: Path):
        """
        Raises:
            CheckpointError: a file has other bytes than were written.
        """
        from nvlm.model.nvlm_d import build_model

        settings = config.train.distill
        assert settings is not None
        self.weight, self._temperature = settings.weight, settings.temperature
        self.content_hash = content_hash(checkpoint)
        self._group = parallel.groups.tp
        self._model = build_model(teacher_config(config, checkpoint), parallel)
        load_weights(checkpoint, [self._model], parallel)
        self._model.requires_grad_(False).eval()

    def losses(self, student: nn.Module, micro_batch: MicroBatch) -> Tensor:
        """[2, 1, t] in fp32: the loss of each token, and the divergence from the teacher there.

        Args:
            student: the whole model, wrapped for data parallelism or not.
        """
        from nvlm.model.parts.divergence import divergence

        with torch.no_grad():
            wanted = self._model(micro_batch, return_logits=True)
        logits = student(micro_batch, return_logits=True)
        # Before the loss, which computes in place.
        apart = divergence(logits, wanted, self._temperature, self._group)
        model: NVLMD = bare([student])[0]  # type: ignore[list-item]
        labels = micro_batch.labels.clamp(min=0)
        losses = model.language_model.compute_language_model_loss(labels, logits.transpose(0, 1))
        return torch.stack([losses.float(), apart])
