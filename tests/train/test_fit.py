"""The loop: several trainings in one process group are the same as each alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from helpers.checkpoint_tensors import checkpoint_tensors
from helpers.small_runs import STEPS, stage_config
from helpers.spawn import metrics

from nvlm.config import RunConfig
from nvlm.parallel.groups import initialize, shut_down

MEASURED = (
    "time",
    "seconds",
    "data_seconds",
    "forward_backward_seconds",
    "encode_seconds",
    "optimizer_seconds",
    "tokens_per_second",
    "tiles_per_second",
    "tflops_per_second",
    "peak_memory_bytes",
)


def two_stages(demo_data: Path, folder: Path) -> list[RunConfig]:
    """A projector's training, and one of everything but the encoder that starts from it."""
    return [
        stage_config("pretrain", demo_data, folder, "random"),
        # Another seed: what one training draws is not to depend on the one before.
        stage_config("sft", demo_data, folder, str(folder / "pretrain"), "train.seed=5"),
    ]


def outcome(config: RunConfig) -> tuple[list[dict], dict, dict[str, torch.Tensor], list]:
    """What a run wrote, but for its id, its settings and how long it took."""
    from torch.distributed.checkpoint import FileSystemReader

    records = metrics(Path(config.run.dir))
    for record in records:
        for key in MEASURED:
            del record[key]
    checkpoint = Path(config.run.dir) / "checkpoints" / f"step_{STEPS:08d}"
    progress = json.loads((checkpoint / "progress.json").read_text())
    del progress["run"]
    entries = FileSystemReader(str(checkpoint)).read_metadata().state_dict_metadata
    return records, progress, checkpoint_tensors(checkpoint), sorted(entries)


def random_state(config: RunConfig, parallel) -> torch.Tensor:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    checkpoint = Path(config.run.dir) / "checkpoints" / f"step_{STEPS:08d}"
    wanted = {"rng": ShardedObject("rng", None, (1,), (0,))}
    return dist_checkpointing.load(wanted, str(checkpoint))["rng"]


def test_two_stages_in_one_process_group_equal_two_runs(demo_data: Path, tmp_path: Path):
    from nvlm.train.fit import fit, train
    from nvlm.train.start import prepare

    together = two_stages(demo_data, tmp_path / "together")
    alone = two_stages(demo_data, tmp_path / "alone")
    for config in alone:
        train(config)
    start = prepare(together[0])
    parallel = initialize(together[0])
    try:
        fit(together[0], parallel, start)
        fit(together[1], parallel, prepare(together[1]))
        states = [random_state(config, parallel) for config in (*together, *alone)]
    finally:
        shut_down()
    assert torch.equal(states[0], states[2]) and torch.equal(states[1], states[3])
    for ours, truth in zip(together, alone, strict=True):
        found, expected = outcome(ours), outcome(truth)
        assert found[0] == expected[0] and len(found[0]) == STEPS
        assert found[1] == expected[1]
        assert found[2].keys() == expected[2].keys()
        different = [key for key in expected[2] if not torch.equal(found[2][key], expected[2][key])]
        assert not different
        assert found[3] == expected[3]
