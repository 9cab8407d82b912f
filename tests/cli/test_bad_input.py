"""Bad input: a line for each thing that is wrong, exit code 2, before a process group starts."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from helpers import small_runs
from helpers.paths import REPOSITORY
from helpers.spawn import run_or_fail

from nvlm import cli

SFT = "configs/run/tiny/sft.yaml"


def fail(*arguments: str, extra_environment: dict[str, str] | None = None) -> str:
    """Run `nvlm ARGUMENTS`, require a one-line error, and return it."""
    lines = problems(*arguments, extra_environment=extra_environment)
    assert len(lines) == 1, lines
    return lines[0]


def problems(*arguments: str, extra_environment: dict[str, str] | None = None) -> list[str]:
    """Run `nvlm ARGUMENTS`, require errors and nothing else, and return them, one a line."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(printed):
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", ["nvlm", *arguments])
        for name, value in (extra_environment or {}).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2, printed.getvalue()
    lines = [line for line in printed.getvalue().splitlines() if line.strip()]
    assert lines and all(line.startswith("error: ") for line in lines), printed.getvalue()
    return lines


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.stepz=3", "did you mean 'train.steps'"),
        ("train.steps=many", "train.steps"),
        ("stage.max_tiles_per_sequence=6", "less than the 7 tiles"),
        ("stage.sequence_length=100", "too short for one image"),
        ("train.steps", "key=value"),
    ],
)
def test_configuration(override: str, expected: str):
    assert expected in fail("train", SFT, override)


def test_all_problems_are_said_at_once(tmp_path: Path):
    """What one key breaks in several places, and the number of processes (this one alone)."""
    source = f"error: {SFT}: "
    found = problems("train", SFT, "parallel.tensor=3", "train.optimizer.min_lr=1")
    assert found[:-1] == [
        *(
            f"{source}parallel.tensor 3 does not divide model.{key}"
            for key in (
                "vision.num_stored_attention_heads 8",
                "vision.ffn_hidden_size 640",
                "connector.ffn_hidden_size 512",
                "language.num_attention_heads 8",
                "language.num_query_groups 4",
                "language.ffn_hidden_size 512",
                "language.vocab_size 1024",
            )
        ),
        f"{source}train.optimizer.min_lr 1.0 exceeds train.optimizer.lr 0.001",
    ]
    assert found[-1].startswith(f"{source}1 processes do not fit parallel.tensor 3 x ")

    run = tmp_path / "run.yaml"
    run.write_text(
        f"base: {REPOSITORY / SFT}\n"
        "run: {dir: $NVLM_NOT_SET/run}\n"
        "train: {stesp: 5}\n"
        "data: {blend: {a: {weight: -1}}}\n"
    )
    found = problems("config", "show", str(run), "train.steps", "train.seed=\x1b[31m\n")
    assert found == [
        f"error: {run}: run.dir: '$NVLM_NOT_SET/run': the environment variable NVLM_NOT_SET is "
        "not set",
        "error: override train.steps: expected key=value, such as train.steps=100",
        f"error: {run}: data.blend.a.weight: must be a number greater than 0, found -1",
        f"error: {run}: train.seed: must be a whole number from 0 to 4294967295, found "
        "'\\x1b[31m' (in override 'train.seed=\\x1b[31m\\n')",
        f"error: {run}: unknown key 'train.stesp'; did you mean 'train.steps'?",
    ]


def test_missing_file():
    assert "configs/none.yaml" in fail("train", "configs/none.yaml")


def test_summary_of_a_layout_that_does_not_fit():
    found = problems("model", "summary", SFT, "parallel.tensor=3", "--json")
    message = "parallel.tensor 3 does not divide model.vision.num_stored_attention_heads 8"
    assert found[0].endswith(message) and len(found) == 7


def test_world_size_does_not_fit(tmp_path: Path):
    # As torchrun would start one of three processes; refused before a rendezvous is tried.
    started = {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    message = fail("train", SFT, "parallel.tensor=2", extra_environment=started)
    assert "3 processes do not fit" in message


def test_empty_shard_folder(tmp_path: Path):
    message = fail("train", SFT, f"data.root={tmp_path}", f"run.dir={tmp_path}/run")
    assert "no .tar files" in message
    assert str(tmp_path) in message
    assert not (tmp_path / "run").exists()


def test_no_initial_weights(demo_data: Path, tmp_path: Path):
    options = [*small_runs.over(demo_data), f"run.dir={tmp_path}/run"]
    assert "checkpoint.load is not set" in fail("train", SFT, *options, "checkpoint.load=null")
    missing = fail("train", SFT, *options, f"checkpoint.load={tmp_path}/none")
    assert "no such checkpoint" in missing


@pytest.mark.parametrize("key", ["stage.freeze", "train.optimizer.lr_multipliers"])
def test_pattern_without_match(key: str, demo_data: Path, tmp_path: Path):
    value = "[vision_tower.*]" if key == "stage.freeze" else '{"vision_tower.*":0.1}'
    options = [*small_runs.over(demo_data), f"run.dir={tmp_path}/run"]
    message = fail("train", SFT, *options, f"{key}={value}")
    assert key in message
    assert "'vision_tower.*' matches no parameter" in message
    assert "vision_model.*" in message


@pytest.mark.parallel
def test_resume_with_other_data_order(demo_data: Path, tmp_path: Path):
    options = [
        *small_runs.over(demo_data),
        f"run.dir={tmp_path}/run",
        "train.global_batch_size=2",
        "log.tensorboard=false",
    ]
    run_or_fail(1, "train", SFT, *options, "train.steps=1", log=tmp_path / "log")
    message = fail("train", SFT, *options, "train.steps=2", "train.seed=99")
    assert "seed" in message
    assert "99" in message
    blend = "data.blend={digits: 1.0, sheets: 3.0}"
    message = fail("train", SFT, *options, "train.steps=2", blend)
    assert "blend" in message
