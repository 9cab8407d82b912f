"""Derived numbers: against the released model's totals and counts by hand.

tests/model compares them with the models that Megatron-core and transformers build.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.config.changed import changed_section
from nvlm.config.compose import to_yaml
from nvlm.errors import ConfigError
from nvlm.sizes.derived import derive
from nvlm.sizes.parameters import num_zero_parameters
from nvlm.views.config import render_config

# By hand in tests/views/test_model.py.
CROSS_ATTENTION = {
    f"nvlm_{fusion}_{size}": count
    for fusion in "xh"
    for size, count in {"72b": 1_510_031_370, "34b": 1_174_476_810}.items()
} | {f"internvit_300m_qwen2_5_7b_{fusion}": 205_545_991 for fusion in "xh"}
TRAINED = {"pretrain": {"vision_projection"}, "sft": {"vision_projection", "language_model"}}
# Some begin after another's first stage.
RUNS = sorted(
    (path.parent.name, path.stem)
    for path in (REPOSITORY / "configs/run").glob("*/*.yaml")
    if path.stem in TRAINED
)


def load(name: str, *overrides: str):
    return load_config(REPOSITORY / "configs" / "run" / f"{name}.yaml", overrides)


def test_72b_has_the_released_number_of_parameters():
    """The model hub reports 79.38 billion for the released checkpoint: the padded ViT is stored."""
    numbers = derive(load("nvlm_d_72b/sft"))
    assert {name: count.total for name, count in numbers.parameters.items()} == {
        "vision_model": 6_052_672_640,
        "vision_projection": 620_717_056,
        "language_model": 72_706_203_648,
    }
    assert numbers.total.total == 79_379_593_344
    assert numbers.total.total - numbers.num_zero_parameters == 78_863_416_704


def test_vision_model_without_padding():
    model = load("nvlm_d_72b/sft").model
    unpadded = changed_section(model, {"vision.num_stored_attention_heads": 25})
    assert num_zero_parameters(model) == 516_176_640
    assert num_zero_parameters(unpadded) == 0
    assert 6_052_672_640 - 516_176_640 == 5_536_496_000  # InternViT-6B-448px-V1-5 with 25 heads


def test_34b_parameters():
    """By hand: Yi-34B is 60 layers of 557,856,768 around two 64,000 x 7,168 embeddings and a norm.

    A layer: 7168 x (56 + 16) x 128 for query, key and value, 7168^2 for the output,
    3 x 7168 x 20480 for SwiGLU, 2 x 7168 for the norms.
    """
    layer = 7168 * 72 * 128 + 7168**2 + 3 * 7168 * 20480 + 2 * 7168
    numbers = derive(load("nvlm_d_34b/sft"))
    assert numbers.parameters["language_model"].total == 60 * layer + 2 * 64000 * 7168 + 7168
    assert numbers.parameters["language_model"].total == 34_388_917_248
    # Two matrices and the LayerNorm's weight and bias.
    assert numbers.parameters["vision_projection"].total == (12800 + 7168) * 20480 + 2 * 12800
    assert numbers.parameters["vision_model"].total == 6_052_672_640


@pytest.mark.parametrize("model, stage", RUNS)
def test_stages_train_what_the_paper_trains(model: str, stage: str):
    numbers, trainable = derive(load(f"{model}/{stage}")), TRAINED[stage]
    expected = {
        name: count.total if name in trainable else 0 for name, count in numbers.parameters.items()
    }
    if stage == "pretrain":  # of NVLM-X and NVLM-H the cross-attention besides
        expected["language_model"] += CROSS_ATTENTION.get(model, 0)
    for name, count in numbers.parameters.items():
        assert count.trainable == expected[name]
    assert numbers.total.trainable == sum(c.trainable for c in numbers.parameters.values())
    assert all(numbers.num_matches.values())


def test_freeze_pattern_of_one_layer():
    # Tiny's second language layer: 192 x (8 + 8) x 24 + bias, 192^2, 3 x 192 x 512, 2 norms.
    layer = 192 * 384 + 384 + 192**2 + 3 * 192 * 512 + 2 * 192
    config = load("tiny/sft", "stage.freeze=['language_model.decoder.layers.1.*', 'nothing.*']")
    numbers = derive(config)
    assert numbers.total.frozen == layer
    assert numbers.num_matches == {"language_model.decoder.layers.1.*": 7, "nothing.*": 0}


def test_images_and_sequences():
    numbers = derive(load("nvlm_d_72b/sft"))
    # 256 tokens and the 5 of its tag; 6 tiles and the thumbnail.
    assert numbers.num_tokens_per_tile == 261
    assert numbers.max_tiles_per_image == 7
    assert numbers.max_tokens_per_image == 1827
    # The paper: 40,000 steps of 128 samples.
    assert numbers.num_sequences == 5_120_000
    assert numbers.max_tokens_per_step == 128 * 3200
    pretrain = derive(load("nvlm_d_72b/pretrain"))
    assert (pretrain.num_tokens_per_tile, pretrain.max_tokens_per_image) == (256, 256)
    assert pretrain.num_sequences == 40_960_000


def test_layout():
    config = load("nvlm_d_72b/sft")
    fewest = derive(config)
    assert (fewest.world_size, fewest.data_parallel_size, fewest.num_micro_batches) == (32, 1, 128)
    cluster = derive(config, world_size=128)
    assert (cluster.data_parallel_size, cluster.num_micro_batches) == (4, 32)
    with pytest.raises(ConfigError, match="48 processes do not fit"):
        derive(config, world_size=48)


# The paper's tables 10 and 11, NVLM-D.
PAPER = {
    "pretrain": {
        "train.steps": 20_000,
        "train.global_batch_size": 2048,
        "train.optimizer.lr": 1e-4,
        "train.optimizer.min_lr": 2.5e-5,
        "train.optimizer.beta1": 0.9,
        "train.optimizer.beta2": 0.95,
        "train.optimizer.weight_decay": 0.1,
        "train.optimizer.clip_grad": 10.0,
        "train.schedule.warmup_steps": 500,
        "stage.sequence_length": 512,
        "stage.max_num_tiles": 1,
        "stage.tile_tags": "none",
        "stage.packing": False,
        "parallel.tensor": 8,
        "parallel.pipeline": 1,
    },
    "sft": {
        "train.steps": 40_000,
        "train.global_batch_size": 128,
        "train.optimizer.lr": 2e-6,
        "train.optimizer.min_lr": 2.5e-7,
        "train.optimizer.beta1": 0.9,
        "train.optimizer.beta2": 0.98,
        "train.optimizer.weight_decay": 0.1,
        "train.optimizer.clip_grad": 10.0,
        "train.schedule.warmup_steps": 1000,
        "stage.sequence_length": 3200,
        "stage.max_num_tiles": 6,
        "stage.use_thumbnail": True,
        "stage.tile_tags": "1d",
        "stage.packing": False,
        "parallel.tensor": 8,
        "parallel.pipeline": 4,
    },
}


@pytest.mark.parametrize("stage", PAPER)
def test_72b_has_the_hyper_parameters_of_the_paper(stage: str):
    resolved = yaml.safe_load(to_yaml(load(f"nvlm_d_72b/{stage}")))
    for key, value in PAPER[stage].items():
        found = resolved
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_shown_configuration_can_be_loaded_again(tmp_path: Path):
    config = load("nvlm_d_72b/sft", "train.steps=7")
    shown = tmp_path / "shown.yaml"
    shown.write_text(render_config(config, world_size=64))
    assert load_config(shown) == config
    comments = [line for line in shown.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(comments)
    for number in ("79,379,593,344", "78,863,416,704", "6,052,672,640", "261", "1,827", "896"):
        assert number in text
    assert "on 64 processes: tensor 8 x pipeline 4 x data 2" in text


def test_features_of_shared_tiles_are_shown():
    shared = render_config(load("nvlm_d_72b/sft", "parallel.vision=tile_parallel"), world_size=128)
    # 32 micro-batches of 7 tiles, each of 256 x 12,800 numbers of 2 bytes.
    assert "features of a step: 224 tiles at most, 1.5 GB" in shared
    assert "features" not in render_config(load("nvlm_d_72b/sft"))


def test_show_warns_of_a_pattern_without_a_match():
    assert "'vision_tower.*' matches no parameter" in render_config(
        load("tiny/sft", "stage.freeze=['vision_tower.*']")
    )


def test_config_show_imports_no_torch():
    """It must answer at once; torch alone takes seconds to import."""
    program = (
        "import sys\n"
        "from nvlm.views.config import show\n"
        "show('configs/run/nvlm_d_72b/sft.yaml', ['train.steps=7'])\n"
        "slow = {'torch', 'megatron', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "steps: 7" in done.stdout
    assert "79,379,593,344" in done.stdout
