"""What `nvlm train` refuses on a GPU that is too small, decided without one."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS
from nvlm.plan.refuse import check_fit
from nvlm.plan.stage_bytes import stage_bytes
from nvlm.plan.work import largest_work
from nvlm.train.start import check_memory

H100 = 85_520_809_984


def load(name: str, *overrides: str):
    return load_config(REPOSITORY / f"configs/run/{name}.yaml", overrides)


def test_what_fits_and_what_does_not():
    check_fit(load("nvlm_d_72b/sft"), 128, H100)
    with pytest.raises(ConfigError) as caught:
        check_fit(load("nvlm_d_34b/sft"), 8, H100)
    message = str(caught.value)
    assert message.startswith("a GPU of pipeline stage 0 would need ")
    for words in ("has 85.5 GB", "optimizer 52.2 GB", "--gpus 8 --search", "--force"):
        assert words in message
    with pytest.raises(ConfigError, match="has 24"):
        check_fit(load("internvit_6b_qwen2_7b/sft"), 8, 24 * 10**9)


def test_adapters_of_a_7b_fit_one_card_of_24_gb():
    memory_bytes = CARDS["rtx-4090"].memory_bytes
    folder = "internvit_300m_qwen2_5_7b"
    for stage in ("pretrain", "lora", "layer_norms"):
        check_fit(load(f"{folder}/{stage}"), 1, memory_bytes)
    with pytest.raises(
        ConfigError, match=r"optimizer 91\.4 GB"
    ):  # 12 bytes for each of 7.6 billion
        check_fit(load(f"{folder}/lora", "stage.adapters={}"), 1, memory_bytes)
    config = load(f"{folder}/lora")
    assumptions = assumptions_for(CARDS["rtx-4090"])
    needed = stage_bytes(config, 0, 1, largest_work(config), assumptions)
    said = (REPOSITORY / f"configs/run/{folder}/lora.yaml").read_text()
    assert f"{needed.peak / 1e9:.1f} GB on one" in said


def test_on_a_cpu_nothing_is_looked_at():
    check_memory(load("nvlm_d_34b/sft"), 8)
