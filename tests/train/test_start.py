"""What a run says at its start about the kernels and settings that it uses."""

from __future__ import annotations

import io

import pytest
import torch
from helpers import small_model
from rich.console import Console

from nvlm import platform
from nvlm.platform.features import RULES
from nvlm.platform.machine import Machine
from nvlm.train import start


def printed(monkeypatch, machine: Machine) -> list[str]:
    monkeypatch.setattr(platform.current(), "machine", lambda: machine)
    text = io.StringIO()
    config = small_model.small_config("train.precision=bf16")
    start._print_features(config, Console(file=text, width=200))
    return text.getvalue().splitlines()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the CPU has no choice")
def test_nothing_is_said_on_a_cpu(monkeypatch):
    assert printed(monkeypatch, platform.current().machine()) == []


def test_every_choice_and_feature_is_a_line_on_a_gpu(monkeypatch):
    found = Machine("A100", (8, 0), {"transformer_engine": "2.10.0"}, cudnn=(9, 15, 0))
    lines = printed(monkeypatch, found)
    assert lines[0] == "  layers transformer_engine: version 2.10.0"
    assert lines[1].startswith("  attention torch, document by document: cuDNN has no attention")
    assert "sm80; flash-attn is not installed" in lines[1]
    assert len(lines) == 3 + len(RULES)
    assert all(" on" in line or " off: " in line for line in lines[3:])
