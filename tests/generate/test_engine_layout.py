"""The layout that answering uses, from that of the training."""

from __future__ import annotations

import pytest
from helpers import small_model
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.config.schema import ParallelConfig
from nvlm.errors import ConfigError
from nvlm.generate.engine_layout import config_for_generation, default_layout, weight_bytes
from nvlm.plan.hardware import CARDS

STAGES = ["model.language.num_layers=8", "parallel.pipeline=2"]
CHUNKS = [*STAGES, "parallel.virtual_pipeline=2"]


@pytest.mark.parametrize(
    "trained, layers",
    [
        (STAGES, "even"),
        (CHUNKS, "even"),
        ([*STAGES, "parallel.layout=[1, 7]"], [1, 7]),
        ([*CHUNKS, "parallel.layout=[[0, 1], [4, 3]]"], [1, 7]),
    ],
)
def test_stages_keep_their_numbers_of_layers(trained: list[str], layers: object):
    config = small_model.small_config(*trained)
    used = config_for_generation(config, layout=None, world_size=2).parallel
    assert (used.pipeline, used.virtual_pipeline, used.layout) == (2, 1, layers)


def test_another_layout_is_even():
    config = small_model.small_config(*STAGES, "parallel.layout=[1, 7]")
    for layout, size in ((None, 1), (ParallelConfig(pipeline=4), 4)):
        used = config_for_generation(config, layout, world_size=size).parallel
        assert (used.pipeline, used.layout) == (size, "even")


def of_72b() -> RunConfig:
    return load_config(REPOSITORY / "configs/run/nvlm_d_72b/sft.yaml")


H100, H200, B200, L40S = (
    CARDS[name].memory_bytes for name in ("h100-80gb", "h200", "b200", "l40s")
)


@pytest.mark.parametrize(
    "processes, on_one_machine, device_bytes, tensor, pipeline",
    [
        (8, 8, H100, 8, 1),  # trained at 8 x 4, for which there are not enough
        (4, 4, H100, 4, 1),
        (2, 2, H200, 2, 1),
        (1, 1, B200, 1, 1),
        (16, 8, H100, 8, 1),  # two replicas
        (32, 8, H100, 8, 4),  # as it was trained
        (64, 8, H100, 8, 4),
        (12, 4, H100, 4, 1),  # 3 divides no heads: three replicas
        (8, 4, L40S, 4, 1),  # 39.7 of 48.3 GB
        (16, 2, L40S, 2, 4),
    ],
)
def test_the_72b_fits_the_devices(processes, on_one_machine, device_bytes, tensor, pipeline):
    config = of_72b()
    layout = default_layout(config, processes, on_one_machine, device_bytes)
    assert (layout.tensor, layout.pipeline) == (tensor, pipeline)
    assert weight_bytes(config, layout) <= 0.85 * device_bytes
    used = config_for_generation(config, None, processes, on_one_machine, device_bytes).parallel
    assert (used.tensor, used.pipeline) == (tensor, pipeline)


def test_the_weights_of_a_process_are_counted():
    """79.4 billion numbers of two bytes: norms and biases, which all have, are next to nothing."""
    config = of_72b()
    whole = weight_bytes(config, ParallelConfig())
    assert whole == 2 * 79_379_593_344
    assert weight_bytes(config, ParallelConfig(tensor=8)) == pytest.approx(whole / 8, rel=1e-3)


@pytest.mark.parametrize("processes, device_bytes", [(1, H100), (2, H100), (3, H200)])
def test_too_few_devices_are_named(processes, device_bytes):
    with pytest.raises(ConfigError, match=r"GB of each device with \d processes.*start more"):
        default_layout(of_72b(), processes, processes, device_bytes)


def test_a_small_model_is_copied():
    """Trained on one process, it is whole on each of eight."""
    config = small_model.small_config()
    assert default_layout(config, 8, 8, H100) == ParallelConfig()
    of_two = small_model.small_config("parallel.tensor=2", "train.global_batch_size=8")
    assert default_layout(of_two, 8, 8, H100).tensor == 2
    assert default_layout(of_two, 8, 8, H100, wants_replicas=True) == ParallelConfig()
    assert default_layout(of_72b(), 8, 8, H100, wants_replicas=True).tensor == 8
    # Its encoder, which no process shares in training, has 8 heads: not a multiple of 3.
    shared = ["parallel.tensor=3", "parallel.vision=tile_parallel", "train.global_batch_size=3"]
    wide = ["model.language.num_query_groups=3", "model.language.num_attention_heads=3"]
    sizes = ["model.language.hidden_size=192", "model.language.ffn_hidden_size=768"]
    others = ["model.connector.ffn_hidden_size=768", "model.language.vocab_size=1536"]
    trained = small_model.small_config(*shared, *wide, *sizes, *others)
    assert default_layout(trained, 3, 3, H100) == ParallelConfig()
