"""Stages in turn on one process: which are left to run, what is refused, what is left behind.

tests/parallel/test_stages_in_turn.py compares them with runs by hand, at several layouts.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from helpers.small_runs import STEPS, small_stages
from helpers.spawn import metrics

from nvlm import stop_requests
from nvlm.errors import NvlmError
from nvlm.train.events import read_events
from nvlm.train.stage_order import find_order

COMMAND = "nvlm train FILE"


@pytest.fixture(scope="module")
def finished(demo_data: Path, tmp_path_factory) -> Path:
    """Both stages, run in turn by this process."""
    folder = tmp_path_factory.mktemp("stages") / "run"
    known = {id(each): each for each in parameters()}  # other tests'; kept, so that ids stay theirs
    process = psutil.Process()
    children = process.children(recursive=True)  # such as the server that others start jobs with
    more = ["data.num_workers=1", "log.tensorboard=true", "checkpoint.every=1"]
    train(small_stages(demo_data, folder, *more))
    # Each stage leaves its memory, its workers and its files to the next.
    assert not [each.shape for each in parameters() if id(each) not in known]
    assert not set(process.children(recursive=True)) - set(children)
    assert not [file.path for file in process.open_files() if file.path.startswith(str(folder))]
    return folder


def parameters() -> list:
    """Without a collection: what refers to itself in circles is to be gone by then."""
    return [each for each in gc.get_objects() if isinstance(each, torch.nn.Parameter)]


def train(runs, only: str | None = None) -> None:
    from nvlm.train.stages import train_stages

    train_stages(runs, COMMAND, only)


def refusal(runs, only: str | None = None) -> str:
    with pytest.raises(NvlmError) as caught:
        train(runs, only)
    return str(caught.value)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    shutil.copytree(finished.parent / "index", tmp_path / "index")
    return tmp_path / "run"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left(demo_data: Path, folder: Path, *more: str, only: str | None = None) -> list[str]:
    return find_order(small_stages(demo_data, folder, *more), only, COMMAND).left


def test_what_is_left_follows_from_the_folders(demo_data: Path, copied: Path):
    assert left(demo_data, copied) == []
    assert left(demo_data, copied.parent / "none") == ["pretrain", "sft"]
    assert left(demo_data, copied, only="pretrain") == ["pretrain"]
    assert left(demo_data, copied, f"stages.sft.train.steps={STEPS + 1}") == ["sft"]
    shutil.rmtree(copied / "sft/checkpoints/step_00000002")
    assert left(demo_data, copied) == ["sft"] == left(demo_data, copied, only="sft")
    shutil.rmtree(copied / "sft")
    assert left(demo_data, copied) == ["sft"] == left(demo_data, copied, only="sft")
    # More of the first stage, while the second has not begun, is more of it.
    longer = f"stages.pretrain.train.steps={STEPS + 1}"
    assert left(demo_data, copied, longer) == ["pretrain", "sft"]


def test_a_run_of_its_own_is_no_later_stage(demo_data: Path, copied: Path):
    """As one that was tried before the file of stages, in the same folder."""
    runs = small_stages(demo_data, copied)
    for path in copied.glob("sft/checkpoints/step_*/config.yaml"):
        text = path.read_text()
        assert text.count("  load: ") == 1
        path.write_text(re.sub("  load: .*", "  load: random", text))
        path.with_name("files.json").unlink()  # has the checksum of the file as it was
    found = refusal(runs)
    assert "stage sft follows stage pretrain" in found
    assert f"{copied / 'sft'} began from random weights" in found


def test_the_stage_before_may_lose_its_checkpoints(demo_data: Path, copied: Path):
    """Once the next one has its own; before, there is nothing to start from."""
    more = small_stages(demo_data, copied, "stages.sft.train.steps=9")
    for path in copied.glob("pretrain/checkpoints/*/config.yaml"):
        path.write_text("")  # damaged: as good as none
    for _ in range(2):
        order = find_order(more, None, COMMAND)
        assert order.left == ["sft"]
        assert order.notes == [f"stage pretrain is finished: {copied}/pretrain"]
        shutil.rmtree(copied / "pretrain/checkpoints", ignore_errors=True)
    shutil.rmtree(copied / "sft")
    # As for a single run: one that has trained past a save does not begin again.
    found = refusal(small_stages(demo_data, copied, "checkpoint.every=1"))
    assert "metrics.jsonl goes to step 2, and there is no checkpoint" in found


def test_a_damaged_final_checkpoint_is_trained_again(demo_data: Path, copied: Path):
    """The next stage does not start from the one before it, which is of an earlier step."""
    runs = small_stages(demo_data, copied, "checkpoint.every=1", f"train.steps={STEPS + 1}")
    shutil.rmtree(copied / "sft")
    train(runs, "pretrain")
    last = copied / f"pretrain/checkpoints/step_{STEPS + 1:08d}"
    next(last.glob("*.distcp")).write_bytes(b"")
    assert find_order(runs, None, COMMAND).left == ["pretrain", "sft"]
    assert "has 2 of its 3 steps" in refusal(runs, "sft")
    train(runs)
    assert len(metrics(copied / "pretrain")) == len(metrics(copied / "sft")) == STEPS + 1
    assert (copied / f"pretrain/checkpoints/step_{STEPS + 1:08d}.damaged").is_dir()


def test_a_stage_waits_for_the_one_before(demo_data: Path, tmp_path: Path):
    runs = small_stages(demo_data, tmp_path / "run", "checkpoint.every=1")
    found = refusal(runs, "sft")
    assert found == (
        f"stage sft starts from stage pretrain, which has not begun ({tmp_path}/run/pretrain): "
        "finish it first: `nvlm train FILE --stage pretrain`"
    )
    assert not (tmp_path / "run").exists()
    train(runs, "pretrain")
    assert not (tmp_path / "run/sft").exists()
    shutil.rmtree(tmp_path / "run/pretrain/checkpoints/step_00000002")
    assert "pretrain, which has 1 of its 2 steps" in refusal(runs, "sft")


def test_a_stage_that_others_come_from_does_not_get_longer(demo_data: Path, copied: Path):
    before = files(copied)
    longer = small_stages(demo_data, copied, f"stages.pretrain.train.steps={STEPS + 5}")
    for only in (None, "pretrain", "sft"):
        found = refusal(longer, only)
        assert f"stage pretrain ended at step {STEPS} and stage sft was trained from it" in found
        assert f"set stages.pretrain.train.steps={STEPS}, or give another run.dir" in found
    assert files(copied) == before


def test_other_settings_of_a_finished_stage(demo_data: Path, copied: Path):
    """Those that make a run refuse to resume are refused, others are said to have no effect."""
    before = files(copied)
    notes = find_order(
        small_stages(
            demo_data,
            copied,
            "stages.pretrain.train.optimizer.lr=1",
            "stages.pretrain.data.root=/gone",
            "stages.pretrain.parallel.tensor=2",
            "log.every=5",
        ),
        None,
        COMMAND,
    ).notes
    assert notes == [
        f"stage pretrain is finished: {copied}/pretrain",
        "stage pretrain was trained with other settings, and stays as it is: data.root "
        f"{demo_data} (now /gone), train.optimizer.lr 0.003 (now 1.0)",
        f"stage sft is finished: {copied}/sft",
    ]
    other = small_stages(demo_data, copied, "stages.pretrain.stage.freeze=[vision_model.*]")
    assert "was trained with stage.freeze" in refusal(other)
    assert files(copied) == before


@pytest.mark.parametrize(
    "override, found",
    [
        ("stage.freeze=[visoin_model.*]", "stage sft: stage.freeze: 'visoin_model.*' matches no"),
        ("stage.freeze=['*']", "stage sft: stage.freeze ['*'] leaves nothing to train"),
        (
            "train.optimizer.lr_multipliers={a: 2}",
            "stage sft: train.optimizer.lr_multipliers: 'a' matches no parameter",
        ),
        (
            "train.optimizer.weight_decay_multipliers={'*.bias': 2}",
            "stage sft: train.optimizer.weight_decay_multipliers: '*.bias' matches no parameter th",
        ),
        ("data.root=/nothing", "stage sft: data.blend: no source 'digits' under /nothing/train"),
        ("data.blend={nothing: 1}", "stage sft: "),
        ("data.prompt_pools=/nothing.yaml", "stage sft: /nothing.yaml"),
        ("model.tokenizer=/nothing", "stage sft: "),
        ("parallel.tensor=2", "stage sft: 1 processes do not fit parallel.tensor 2"),
    ],
)
def test_what_is_wrong_with_a_later_stage_is_said_before_the_first(
    demo_data: Path, tmp_path: Path, override: str, found: str
):
    runs = small_stages(demo_data, tmp_path / "run", f"stages.sft.{override}")
    assert refusal(runs).startswith(found)
    # Before the first stage's data are indexed, too.
    assert not (tmp_path / "run").exists() and not (tmp_path / "index").exists()


def test_a_failed_stage_leaves_the_one_before_whole(demo_data: Path, copied: Path):
    shutil.rmtree(copied / "sft")
    before = files(copied / "pretrain")
    wild = ["stages.sft.train.optimizer.lr=1e30", "stages.sft.train.schedule.warmup_steps=0"]
    assert "the loss is nan" in refusal(small_stages(demo_data, copied, *wild))
    assert files(copied / "pretrain") == before
    assert not (copied / "pretrain/.owners").exists()


@pytest.mark.parametrize("steps, saved", [(3, 1), (1, 1)])
def test_a_request_to_stop_is_taken_in_a_stage_and_between_two(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, saved: int
):
    """After its step, be it the stage's last one: the next stage does not begin."""
    runs = small_stages(demo_data, tmp_path / "run", f"train.steps={steps}")
    monkeypatch.setattr(stop_requests, "_asked", stop_requests.COMMAND)
    with pytest.raises(stop_requests.Stopped) as stopped:
        train(runs)
    assert stopped.value.reason == stop_requests.COMMAND
    assert [path.name for path in (tmp_path / "run/pretrain/checkpoints").glob("step_*")] == [
        f"step_{saved:08d}"
    ]
    assert not (tmp_path / "run/sft/checkpoints").exists()
    assert find_order(runs, None, COMMAND).left == ["pretrain", "sft"][saved == steps :]
    folder = "pretrain" if saved < steps else "sft"
    *_, last = read_events(tmp_path / "run" / folder)
    assert (last.kind, last.fields["reason"]) == ("stop", stop_requests.COMMAND)


def test_one_file_of_stages_one_start(demo_data: Path, tmp_path: Path):
    """Another run in any of the folders, such as that of a later stage alone, is found at once."""
    folder = tmp_path / "run" / "sft"
    code = "import sys, time\nfrom pathlib import Path\nfrom nvlm.train.ownership import "
    code += "own_run_folder as own\nwith own(Path(sys.argv[1])):\n    print(1, flush=True)\n"
    code += "    time.sleep(60)\n"
    command = [sys.executable, "-c", code, str(folder)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
    try:
        assert other.stdout and other.stdout.readline()
        found = refusal(small_stages(demo_data, tmp_path / "run"))
        assert found.startswith(f"{folder} is in use by another run: process {other.pid}")
        assert not (tmp_path / "run" / "pretrain").exists()
    finally:
        other.kill()
        other.wait()
