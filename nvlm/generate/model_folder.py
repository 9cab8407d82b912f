"""The folders that answer: Megatron-core's checkpoints, and Hugging Face folders of an NVLM-D."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nvlm.checkpoint_io as checkpoints
from nvlm.checkpoint_shares import read_shared, sharded_tensors
from nvlm.config.schema import RunConfig
from nvlm.convert.export_config import config_of_export, stop_ids_of_export
from nvlm.convert.hf.folder import CONFIG_FILE, HfFolder
from nvlm.convert.hf.sources import open_released
from nvlm.convert.read_weights import read_weights
from nvlm.hub import folder_of
from nvlm.safe_loading import check_readable

if TYPE_CHECKING:
    from nvlm.model.nvlm_d import NVLMD
    from nvlm.parallel.groups import Parallel


@dataclass(frozen=True)
class ModelFolder:
    """A folder that was looked at, and how it is read.

    Attributes:
        config: how it was trained; of an export, as far as its own files say.
        stop_ids: tokens that end an answer, besides the end of a turn.
        check_contents: every process calls this before `read_weights`, which fills a model in
            parallel: each process its own part.
    """

    path: Path
    config: RunConfig
    stop_ids: tuple[int, ...]
    check_contents: Callable[[], None]
    read_weights: Callable[[NVLMD, Parallel], None]


def find_model(path: str | Path) -> ModelFolder:
    """The checkpoint meant by `path`, or the export that it is. Reads no weights.

    Args:
        path: a checkpoint or run folder, an export, or an export's id in the hub (`nvlm.hub`).

    Raises:
        DataError: the hub's cannot be had.
        CheckpointError: there is neither, or the checkpoint is not whole.
        ConvertError: the export is not whole, of another architecture, or asks for what is not
            computed here.
        ConfigError: a value in the configuration is wrong.
    """
    path = folder_of(path, "CHECKPOINT").path
    if (path / CONFIG_FILE).is_file() and not checkpoints.is_checkpoint(path):
        return _export(path)
    checkpoint = checkpoints.resolve_checkpoint(path)
    check_readable(checkpoint)

    def read(model: NVLMD, parallel: Parallel) -> None:
        tensors = [*sharded_tensors(model.sharded_state_dict())]
        read_shared(checkpoint, tensors, parallel.alike)

    return ModelFolder(
        checkpoint,
        checkpoints.read_config(checkpoint),
        (),
        lambda: checkpoints.check_contents(checkpoint),
        read,
    )


def _export(path: Path) -> ModelFolder:
    folder = HfFolder(path)
    config = config_of_export(folder)
    (source,) = open_released(path, config.model)

    def read(model: NVLMD, parallel: Parallel) -> None:
        tensors = [*sharded_tensors(model.sharded_state_dict())]
        read_weights(source, tensors, parallel.alike)

    # Such folders have no checksums; every tensor is looked at as it is read.
    stop_ids = tuple(stop_ids_of_export(folder))
    return ModelFolder(path.resolve(), config, stop_ids, lambda: None, read)
