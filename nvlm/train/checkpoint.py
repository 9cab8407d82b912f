"""A training run's checkpoints: all that the next step depends on, readable at any layout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from nvlm.checkpoint_files import find_damage, read_config, read_progress
from nvlm.checkpoint_io import (
    check_contents,
    move_aside,
    on_main_rank,
    point,
    resolve_checkpoint,
    write_checkpoint,
)
from nvlm.checkpoint_shares import read_shared, sharded_tensors, share_writing
from nvlm.config.checks import model_differences
from nvlm.config.schema import RunConfig
from nvlm.errors import CheckpointError
from nvlm.megatron.fp8_state import is_scaling
from nvlm.megatron.idle_stage import without_empty_state
from nvlm.megatron.optimizer_settings import load_optimizer_state
from nvlm.megatron.sharding_metadata import sharding_metadata
from nvlm.megatron.uncollected_state import nothing_collected
from nvlm.parallel.agreement import MAIN_CHANNEL, Channel
from nvlm.parallel.groups import Parallel
from nvlm.printing import say
from nvlm.rows import EVERY_ADAPTER, is_adapter
from nvlm.run_checkpoints import (
    BEST_LINK,
    CHECKPOINTS_FOLDER,
    LATEST_LINK,
    Newest,
    find_newest,
)
from nvlm.safe_loading import check_readable, read_metadata
from nvlm.sizes.adapters import adapters_of, have_same_tensors
from nvlm.sizes.tile_tags import KEY as TILE_TAGS_KEY
from nvlm.train.alignment_change import (
    ALIGNMENT_PATTERNS,
    resumed_otherwise,
    started_otherwise,
)
from nvlm.train.optim import bare
from nvlm.train.retention import remove_older
from nvlm.train.run_folder import check_nothing_is_missing, note_saved, read_run_id

if TYPE_CHECKING:  # Megatron-core is imported behind the platform, which nvlm.model chooses
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    from nvlm.model.nvlm_d import NVLMD


def checkpoints_folder(config: RunConfig) -> Path:
    return Path(config.run.dir) / CHECKPOINTS_FOLDER


def find_resume_point(config: RunConfig, excluded: Mapping[Path, str] | None = None) -> Newest:
    """The run's newest whole checkpoint; none in it for a fresh run.

    Args:
        excluded: see `find_newest`.

    Raises:
        CheckpointError: the run exists and has no whole training checkpoint, or it was written by a
            model of other sizes, or with other freezing or factors on rates.
    """
    newest = find_newest(checkpoints_folder(config), excluded)
    checkpoint = newest.checkpoint
    if checkpoint is None:
        check_nothing_is_missing(Path(config.run.dir), config)
        return newest
    if read_progress(checkpoint) is None:
        raise CheckpointError(f"{checkpoint}: has no progress.json: not written by a training run")
    check_same_model(config, checkpoint)
    saved = read_config(checkpoint)
    if saved.stage.freeze != config.stage.freeze:
        raise CheckpointError(
            f"{checkpoint}: was trained with stage.freeze {saved.stage.freeze}, this run says "
            f"{config.stage.freeze}: use another run.dir, with checkpoint.load={checkpoint}"
        )
    if problem := _other_tile_tags(config, saved) or resumed_otherwise(config, saved):
        raise CheckpointError(f"{checkpoint}: {problem}")
    if saved.stage.adapters != config.stage.adapters:
        raise CheckpointError(
            f"{checkpoint}: was trained with other stage.adapters: use another run.dir, with "
            f"checkpoint.load={checkpoint}"
        )
    for key in ("lr_multipliers", "weight_decay_multipliers"):
        theirs, ours = (getattr(c.train.optimizer, key) for c in (saved, config))
        if theirs != ours:
            # The optimizer's state is kept by groups of parameters, which these patterns make.
            raise CheckpointError(
                f"{checkpoint}: was trained with train.optimizer.{key} {theirs}, this run says "
                f"{ours}: use another run.dir, with checkpoint.load={checkpoint}"
            )
    return newest


def find_initial_weights(config: RunConfig) -> Path | None:
    """The checkpoint that `checkpoint.load` names; None where it says `random`.

    Raises:
        CheckpointError: nothing is named, the folder is not a checkpoint, or of another model.
    """
    wanted = config.checkpoint.load
    if wanted is None:
        raise CheckpointError(
            "checkpoint.load is not set: give the checkpoint folder to start from "
            "(`nvlm convert from-hf` makes one), or checkpoint.load=random"
        )
    if wanted == "random":
        return None
    checkpoint = resolve_checkpoint(wanted)
    check_same_model(config, checkpoint)
    _check_adapters(config, checkpoint)
    saved = read_config(checkpoint)
    # None there is no mistake: they begin anew.
    if saved.stage.has_soft_tags and (problem := _other_tile_tags(config, saved)):
        raise CheckpointError(f"{checkpoint}: {problem}")
    if problem := started_otherwise(config, saved):
        raise CheckpointError(f"{checkpoint}: {problem}")
    check_readable(checkpoint)
    return checkpoint


def check_same_model(config: RunConfig, checkpoint: Path) -> None:
    """Raise `CheckpointError` naming the first model size that differs."""
    for key, ours, theirs in model_differences(config.model, read_config(checkpoint).model):
        raise CheckpointError(f"{checkpoint}: {key} is {theirs} there and {ours} in this run")


def _other_tile_tags(config: RunConfig, saved: RunConfig) -> str | None:
    """Why this run cannot go on with the tile tags that were learned, or were not, up to here."""
    keys = ("tile_tags", "max_num_tiles", "num_soft_tag_tokens")
    theirs, ours = ({key: getattr(c.stage, key) for key in keys} for c in (saved, config))
    if theirs == ours or not (saved.stage.has_soft_tags or config.stage.has_soft_tags):
        return None
    (key, was), *_ = [(key, was) for key, was in theirs.items() if was != ours[key]]
    return (
        f"its tile tags are learned vectors of stage.{key} {was}, and this run says {ours[key]}: "
        "tags that were learned for one do not stand for another; give the same, or start from a "
        "checkpoint before them"
        if saved.stage.has_soft_tags
        else f"was trained with stage.{key} {was}, this run says {ours[key]}: use another run.dir"
    )


def _check_adapters(config: RunConfig, checkpoint: Path) -> None:
    """Raise `CheckpointError` where a checkpoint has adapters that this run does not go on with."""
    theirs = adapters_of(read_config(checkpoint))
    if theirs and not have_same_tensors(theirs, adapters_of(config)):
        raise CheckpointError(
            f"{checkpoint}: has adapters that are not those of this run's stage.adapters: put them "
            f"into the model first (`nvlm convert merge {checkpoint} OUT`), and start from OUT"
        )


def save_training_state(
    config: RunConfig,
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    progress: dict,
    parallel: Parallel,
) -> Path:
    """Write `checkpoints/step_XXXXXXXX` and point `latest` to it; every rank calls this.

    What is in its place, such as a damaged one that this run resumed before, is moved aside.

    Args:
        chunks: wrapped for data parallelism.
        progress: see `write_training_state`.
    """
    state = training_state(chunks, optimizer, scheduler, parallel)
    return write_training_state(config, state, progress, parallel)


def training_state(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    parallel: Parallel,
) -> dict:
    """The sharded state that a checkpoint of a training has; its tensors are the training's."""
    tensors, others = _sharded_state(chunks, optimizer, scheduler, parallel, is_loading=False)
    share_writing(tensors, parallel.alike)
    return {"weights": {str(number): tensor for number, tensor in enumerate(tensors)}, **others}


def write_training_state(
    config: RunConfig,
    state: dict,
    progress: dict,
    parallel: Parallel,
    channel: Channel = MAIN_CHANNEL,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write `state` into the run's folder; every rank calls this, on `channel`.

    Args:
        progress: `step`, `counters`, `data_state` and `spikes`, and what else is worth keeping
            (`kind`, `measured`, `is_best`: see nvlm/train/saver.py); JSON values only.
        check: raises where this run is not to write; called on the main rank before the first file
            is written, and again before the checkpoint counts.
    """
    folder = checkpoints_folder(config)
    target = folder / f"step_{progress['step']:08d}"
    run_id = read_run_id(Path(config.run.dir))

    def prepare() -> None:
        check()
        _make_way(target)

    on_main_rank(prepare, channel)
    checkpoint = write_checkpoint(
        target,
        state,
        config,
        progress={"run": run_id, "layout": _layout(parallel), **progress},
        content_metadata=sharding_metadata(),
        channel=channel,
        check=check,
    )

    def publish() -> None:
        note_saved(Path(config.run.dir), progress["step"])
        point(checkpoint, LATEST_LINK)
        if progress.get("is_best"):
            point(checkpoint, BEST_LINK)
        if config.checkpoint.keep is not None:
            remove_older(folder, checkpoint, config.checkpoint, run_id)

    on_main_rank(publish, channel)
    return checkpoint


def _make_way(target: Path) -> None:
    if os.path.lexists(target):
        why = "damaged" if find_damage(target) else "replaced"
        aside = move_aside(target, why)
        say(f"{target} is written again: what was there is now {aside.name}", sys.stderr)


def load_training_state(
    checkpoint: Path,
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    parallel: Parallel,
) -> dict:
    """Restore all that `save_training_state` wrote; returns its progress record.

    Random-number states are per process and restored when the layout is the one that wrote them;
    a step does not depend on them (`nvlm.model.parts.dropout.begin_step`).
    """
    progress = read_progress(checkpoint)
    assert progress is not None
    tensors, others = _sharded_state(chunks, optimizer, scheduler, parallel, is_loading=True)
    same_layout = progress["layout"] == _layout(parallel)
    if not same_layout:
        del others["rng"]
    scaling = {tensor.key for tensor in tensors if is_scaling(tensor.key)}
    if scaling and not scaling <= read_metadata(checkpoint).state_dict_metadata.keys():
        # Trained in 16 bits, or scaled in another way, up to here.
        tensors = [tensor for tensor in tensors if not is_scaling(tensor.key)]
        if parallel.is_main:
            say(f"{checkpoint} has no scaling factors of FP8: they begin anew", sys.stderr)
    is_everywhere = bare(chunks)[0].is_everywhere
    loaded = read_shared(checkpoint, tensors, parallel.alike, others, is_everywhere)
    load_optimizer_state(optimizer, loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    if same_layout:
        torch.set_rng_state(loaded["rng"])
    return progress


def load_weights(checkpoint: Path, chunks: list[NVLMD], parallel: Parallel) -> list[str]:
    """Read only the model's weights into the bare `chunks`.

    Returns:
        patterns of the keys that it has none of, and that are left unset: adapters, learned tags,
        levels of alignment and their gate.

    Raises:
        CheckpointError: a file has other bytes than were written, or does not fit the model.
    """
    check_contents(checkpoint)
    tensors = [t for chunk in chunks for t in sharded_tensors(chunk.sharded_state_dict())]
    saved = read_metadata(checkpoint).state_dict_metadata
    unset = [] if any(map(is_adapter, saved)) else [EVERY_ADAPTER]
    unset += [] if TILE_TAGS_KEY in saved else [TILE_TAGS_KEY]
    unset += [p for p in ALIGNMENT_PATTERNS if not any(fnmatchcase(key, p) for key in saved)]
    tensors = [t for t in tensors if not any(fnmatchcase(t.key, pattern) for pattern in unset)]
    read_shared(checkpoint, tensors, parallel.alike, is_everywhere=chunks[0].is_everywhere)
    return unset


def _sharded_state(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    scheduler: OptimizerParamScheduler,
    parallel: Parallel,
    is_loading: bool,
) -> tuple[list[ShardedTensor], dict]:
    """What several ranks hold alike, weights and factors of FP8, and everything else."""
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    weights = {
        f"model{index}": chunk.sharded_state_dict(metadata=sharding_metadata())
        for index, chunk in enumerate(bare(chunks))
    }
    with nothing_collected():
        optimizer_state = optimizer.sharded_state_dict(
            weights, is_loading=is_loading, metadata=sharding_metadata()
        )
    others = {
        "optimizer": without_empty_state(optimizer_state),
        "scheduler": scheduler.state_dict(),
        "rng": ShardedObject(
            "rng", torch.get_rng_state(), (dist.get_world_size(),), (parallel.rank,)
        ),
    }
    alike = [t for entries in weights.values() for t in sharded_tensors(entries)]
    alike += [tensor for chunk in bare(chunks) for tensor in chunk.scaling_tensors()]
    return alike, others


def _layout(parallel: Parallel) -> dict[str, int]:
    return {
        "tensor": parallel.tensor_size,
        "pipeline": parallel.pipeline_size,
        "virtual": parallel.virtual_size,
        "data": parallel.data_size,
        **({"context": parallel.context_size} if parallel.context_size > 1 else {}),
        **({"expert": parallel.expert_size} if parallel.expert_size > 1 else {}),
    }
