"""A checkpoint as a model that can answer: on one process, or at any layout under torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvlm.checkpoint_io import check_contents, read_config, read_sharded, resolve_checkpoint
from nvlm.config.checks import check_config, check_world_size
from nvlm.config.schema import ParallelConfig, RunConfig
from nvlm.data.text.chat import open_tokenizer
from nvlm.parallel.groups import initialize, world_size_from_environment
from nvlm.safe_loading import check_readable

if TYPE_CHECKING:
    from nvlm.model.nvlm_d import NVLMD


def load_for_generation(
    checkpoint: str | Path, layout: ParallelConfig | None = None
) -> tuple[NVLMD, Any, RunConfig]:
    """Read a checkpoint's weights into a model in evaluation mode; every process calls this.

    Args:
        checkpoint: a checkpoint folder, or a run folder (its latest).
        layout: tensor and pipeline sizes. None: one process holds the whole model, several take the
            layout that the checkpoint was trained with. Processes beyond a replica are replicas.

    Returns:
        This process's pipeline stage, the Hugging Face tokenizer, and the checkpoint's
        configuration with the layout in use.

    Raises:
        CheckpointError: there is no whole checkpoint, or it does not fit its configuration.
        ConfigError: the number of processes does not fit the layout.
    """
    folder = resolve_checkpoint(checkpoint)
    check_readable(folder)
    world_size = world_size_from_environment()
    config = config_for_generation(read_config(folder), layout, world_size)
    parallel = initialize(config, world_size)
    # Imported late: Megatron-core may only be imported once `initialize` chose the platform.
    from nvlm.model.nvlm_d import build_model

    check_contents(folder)
    model = build_model(config, parallel)
    model.load_state_dict(read_sharded(folder, {"model": model.sharded_state_dict()})["model"])
    model.eval()
    return model, open_tokenizer(config.model.tokenizer), config


def config_for_generation(
    config: RunConfig, layout: ParallelConfig | None, world_size: int
) -> RunConfig:
    """A checkpoint's configuration with the layout in use; see `load_for_generation`.

    Sequence parallelism and virtual stages are for training; batch sizes are made to fit.

    Raises:
        ConfigError: the layout does not fit the model or the number of processes.
    """
    if layout is None:
        layout = ParallelConfig() if world_size == 1 else config.parallel
    layout = layout.model_copy(update={"sequence": False, "virtual_pipeline": 1})
    train = config.train.model_copy(update={"micro_batch_size": 1, "global_batch_size": world_size})
    config = config.model_copy(update={"parallel": layout, "train": train})
    where = f"the checkpoint at --tensor {layout.tensor} --pipeline {layout.pipeline}"
    check_config(config, source=where)
    check_world_size(config, world_size)
    return config
