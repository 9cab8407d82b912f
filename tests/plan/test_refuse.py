"""What `nvlm train` refuses on a GPU that is too small, decided without one."""

from __future__ import annotations

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.plan.refuse import check_fit
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


def test_on_a_cpu_nothing_is_looked_at():
    check_memory(load("nvlm_d_34b/sft"), 8)
