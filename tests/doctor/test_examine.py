"""What is looked at on one machine, and what of it is called wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.doctor import machine
from nvlm.doctor.examine import Unfit, examine
from nvlm.doctor.pairs import num_rounds, partner
from nvlm.doctor.places import look_at_places

RUNS = REPOSITORY / "configs" / "run"


def findings(config) -> dict[str, str]:
    return {finding.what: finding.wrong for finding in look_at_places(config)}


def test_a_run_that_can_start(demo_data, tmp_path):
    config = load_config(
        RUNS / "tiny/sft.yaml", [f"data.root={demo_data}", f"run.dir={tmp_path / 'run'}"]
    )
    assert set(findings(config).values()) == {""}
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    """No disk here holds two checkpoints of the 72B, and none of its folders is there."""
    # The hub's client tries a network that is not there for half a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = load_config(
        RUNS / "nvlm_d_72b/sft.yaml",
        [f"run.dir={tmp_path / 'run'}", f"data.root={tmp_path}", "checkpoint.load=nowhere"],
    )
    wrong = findings(config)
    assert "2 have to fit" in wrong["disk of run.dir"]
    assert "nowhere: no such checkpoint folder" in wrong["starts from"]
    assert str(tmp_path) in wrong["data"]
    assert "tokenizer" in wrong


def test_all_that_is_wrong_is_said_at_the_end(tmp_path, capsys):
    config = load_config(
        RUNS / "tiny/sft.yaml", [f"data.root={tmp_path / 'no'}", f"run.dir={tmp_path / 'run'}"]
    )
    with pytest.raises(Unfit, match="data: "):
        examine([config], 10)
    printed = capsys.readouterr().out
    assert "torch: " in printed
    assert "shared memory" in printed
    assert str(tmp_path / "no") in printed


def test_shared_memory_that_is_too_small():
    usage = machine.look_at_limits(num_workers=64, bytes_per_batch=2**40)
    wrong = next(finding.wrong for finding in usage if "shared memory" in finding.what)
    assert "--shm-size" in wrong
    assert not any(finding.wrong for finding in machine.look_at_limits())


def test_a_package_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As it is installed, and built for another torch."""
    (tmp_path / "wandb.py").write_text("raise OSError('undefined symbol: _ZN3c10')")
    (tmp_path / "wandb-0.1.dist-info").mkdir()
    (tmp_path / "wandb-0.1.dist-info" / "METADATA").write_text("Name: wandb\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wrong = {finding.what: finding.wrong for finding in machine.look_at_packages()}
    assert "undefined symbol" in wrong["wandb"]


@pytest.mark.parametrize("num_ranks", range(2, 10))
def test_every_two_meet_once(num_ranks: int):
    met = []
    for number in range(num_rounds(num_ranks)):
        others = [partner(rank, number, num_ranks) for rank in range(num_ranks)]
        for rank, other in enumerate(others):
            assert other is None or others[other] == rank
        met += [(rank, other) for rank, other in enumerate(others) if other and rank < other]
        assert others.count(None) == num_ranks % 2
    assert sorted(met) == [(a, b) for a in range(num_ranks) for b in range(a + 1, num_ranks)]
