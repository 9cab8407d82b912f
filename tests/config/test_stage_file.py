"""A file of stages is runs that follow each other, or says which key of which stage is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config, load_runs
from nvlm.errors import ConfigError

TINY = REPOSITORY / "configs" / "run" / "tiny"
FILE = f"""
run: {{name: two, dir: runs/two}}
stages:
  pretrain: {{base: {TINY}/pretrain.yaml}}
  sft: {{base: {TINY}/sft.yaml}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, FILE)


def written(folder: Path, text: str, name: str = "stages.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def two(path: Path, *overrides: str) -> tuple[RunConfig, RunConfig]:
    runs = load_runs(path, overrides)
    assert list(runs) == ["pretrain", "sft"]
    return runs["pretrain"], runs["sft"]


def problems(path: Path, *overrides: str, **asked) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_runs(path, overrides, **asked)
    return [line.replace(f"{path}: ", "FILE: ") for line in caught.value.args]


def test_stages_are_the_runs_that_they_are_built_on(path: Path):
    """Each in a folder of its own, each from the one before; nothing else is different."""
    pretrain, sft = two(path)
    for name, config, load in (("pretrain", pretrain, "random"), ("sft", sft, "runs/two/pretrain")):
        changes = [f"run.name=two-{name}", f"run.dir=runs/two/{name}", f"checkpoint.load={load}"]
        assert config == load_config(TINY / f"{name}.yaml", changes)


@pytest.mark.parametrize(
    "name, model_parallel",
    [("nvlm_d_72b", [8, 32]), ("nvlm_d_34b", [8, 8]), ("internvit_6b_qwen2_7b", [2, 2])],
)
def test_shipped_stages_are_where_the_runs_themselves_are(name: str, model_parallel: list[int]):
    """A project that began with one command for each stage goes on with the file of both."""
    folder = REPOSITORY / "configs" / "run" / name
    found = load_runs(folder / "stages.yaml")
    assert [config.parallel.model_parallel_size for config in found.values()] == model_parallel
    for stage, config in found.items():
        assert config == load_config(folder / f"{stage}.yaml")
        assert config == load_config(folder / "stages.yaml", stage=stage)


def test_what_the_file_says_goes_over_all_bases_and_stages_over_that(tmp_path: Path):
    path = written(
        tmp_path,
        f"""
base: shared.yaml
run: {{name: a, dir: runs/a}}
train: {{seed: 2, steps: 20}}
data: {{root: ./shards}}
stages:
  pretrain: {{base: {TINY}/pretrain.yaml}}
  sft: {{base: [{TINY}/sft.yaml, over.yaml], train: {{steps: 30}}, data: {{root: ./others}}}}
""",
    )
    written(tmp_path, "train: {seed: 1, micro_batch_size: 2}\nlog: {every: 7}\n", "shared.yaml")
    written(tmp_path, "train: {seed: 9, steps: 9, micro_batch_size: 4}\n", "over.yaml")
    pretrain, sft = two(path)
    assert [config.train.seed for config in (pretrain, sft)] == [2, 2]
    assert [config.train.steps for config in (pretrain, sft)] == [20, 30]
    assert [config.train.micro_batch_size for config in (pretrain, sft)] == [2, 4]
    assert [config.log.every for config in (pretrain, sft)] == [7, 7]
    assert [config.data.root for config in (pretrain, sft)] == [
        str(tmp_path / "shards"),
        str(tmp_path / "others"),
    ]


def test_files_of_stages_build_on_each_other(tmp_path: Path, path: Path):
    more = written(
        tmp_path,
        "base: stages.yaml\nrun: {dir: runs/more}\nstages:\n  sft: {train: {steps: 3}}\n"
        f"  last: {{base: {TINY}/sft.yaml}}\n",
        "more.yaml",
    )
    runs = load_runs(more)
    assert list(runs) == ["pretrain", "sft", "last"]
    assert [c.run.dir for c in runs.values()] == [f"runs/more/{name}" for name in runs]
    assert [c.checkpoint.load for c in runs.values()][1:] == ["runs/more/pretrain", "runs/more/sft"]
    assert runs["sft"].train.steps == 3 and runs["last"].train.steps == 180


def test_a_stage_without_bases_is_named_like_its_key(tmp_path: Path):
    path = written(
        tmp_path,
        f"base: {TINY}/sft.yaml\nstages:\n  first: {{stage: {{freeze: []}}}}\n  second:\n",
    )
    first, second = load_runs(path).values()
    assert (first.stage.name, second.stage.name) == ("sft", "sft")
    assert first.stage.freeze == [] and second.stage.freeze == ["vision_model.*"]
    assert (first.run.dir, second.run.dir) == ("runs/tiny/sft/first", "runs/tiny/sft/second")
    parts = ", ".join(f"{REPOSITORY}/configs/{part}.yaml" for part in ("model/tiny", "data/demo"))
    text = f"base: [{parts}]\nrun: {{name: a, dir: a}}\nstages:\n  second: {{stage: "
    text += "{sequence_length: 512}, train: {steps: 1, global_batch_size: 1, optimizer: {lr: 1}}}"
    (only,) = load_runs(written(tmp_path, text)).values()
    assert (only.stage.name, only.run.name) == ("second", "a-second")


def test_overrides_are_of_all_stages_or_of_one(path: Path, capsys: pytest.CaptureFixture):
    pretrain, sft = two(path, "train.steps=5", "stages.sft.train.steps=6", "run.dir=elsewhere")
    assert (pretrain.train.steps, sft.train.steps) == (5, 6)
    assert sft.run.dir == "elsewhere/sft" and sft.checkpoint.load == "elsewhere/pretrain"
    pretrain, sft = two(path, "checkpoint.load=converted", "data.root=shards")
    assert (pretrain.checkpoint.load, sft.checkpoint.load) == ("converted", "runs/two/pretrain")
    assert pretrain.data.root == sft.data.root == "shards"
    pretrain, sft = two(path, "stages={sft: {parallel: {tensor: 2}}}", "stages.sft.data.blend.a=2")
    assert (pretrain.parallel.tensor, sft.parallel.tensor) == (1, 2)
    assert (pretrain.data.blend, sft.data.blend) == (None, {"a": 2.0})
    assert not capsys.readouterr().err
    # The last one counts, as in any file; it is said where that leaves nothing of an earlier one.
    _, sft = two(path, "stages.sft.train.steps=6", "train.steps=5")
    assert sft.train.steps == 5
    assert "note: override stages.sft.train.steps=6 does not count" in capsys.readouterr().err


@pytest.mark.parametrize(
    "override, found",
    [
        ("train.stesp=1", ["FILE: unknown key 'train.stesp'; did you mean 'train.steps'?"]),
        (
            "stages.sft.train.stesp=1",
            ["FILE: stages.sft: unknown key 'train.stesp'; did you mean 'train.steps'?"],
        ),
        ("stages.sft.train.micro_batch_size=3", ["FILE: stages.sft: train.global_batch_size 4"]),
        ("stages.sfd.train.steps=1", ["override stages.sfd.train.steps=1: no stage 'sfd'"]),
        ("stages.sft=1", ["override stages.sft=1: stages.sft: must be a mapping of settings"]),
        ("stages=1", ["override stages=1: stages: must be a mapping of stages"]),
        ("stages.sft.run.dir=a", ["FILE: stages.sft: run: `run` is said once"]),
        ("stages.sft.checkpoint.load=a", ["FILE: stages.sft: checkpoint.load: the stage starts"]),
        ("stages.sft.base=a.yaml", ["FILE: stages.sft: unknown key 'base'"]),
        (
            "stages.sft.model.language.num_layers=2",
            ["FILE: stages.sft: model.language.num_layers is 2, and 4 in stages.pretrain"],
        ),
        (
            "train.micro_batch_size=5",
            [
                "FILE: stages.pretrain: train.global_batch_size 8 is not a multiple",
                "FILE: stages.sft: train.global_batch_size 4 is not a multiple",
            ],
        ),
    ],
)
def test_what_is_wrong_is_said_once_with_its_stage(path: Path, override: str, found: list[str]):
    lines = problems(path, override)
    assert len(lines) == len(found)
    for line, beginning in zip(lines, found, strict=True):
        assert line.startswith(beginning), line


@pytest.mark.parametrize(
    "text, found",
    [
        ("stages:\n", "FILE: stages: must be a mapping of stages in their order"),
        ("stages: [a]\n", "FILE: stages: must be a mapping of stages in their order"),
        ("stages: {a: 1}\n", "FILE: stages.a: must be a mapping of settings"),
        ("stages: {a/b: {}}\n", "FILE: stages: 'a/b' is no name of a stage"),
        ("stages: {a: {base: none.yaml}}\n", "none.yaml: no such configuration file"),
        ("stages: {a: {base: [1, [2]]}}\n", "FILE: stages.a: base: must be a file"),
        ("stages: {a: {base: stages.yaml}}\n", "its own base"),
        ("stages: {a: {base: two.yaml}}\n", "FILE: stages.a: base: a stage is built on files of"),
        (f"stages: {{a: {{base: {TINY}/sft.yaml}}}}\n", "FILE: stages.a: missing key 'run'"),
        (
            "stages: {a: {data: {root: $NVLM_NONE}}}\n",
            "FILE: stages.a: data.root: '$NVLM_NONE': the env",
        ),
    ],
)
def test_files_that_have_no_such_stages(tmp_path: Path, text: str, found: str):
    written(tmp_path, FILE, "two.yaml")
    assert found in problems(written(tmp_path, text))[0]


def test_a_verb_about_one_run_asks_which(path: Path):
    with pytest.raises(ConfigError, match="has stages: say which one: --stage pretrain or --st"):
        load_config(path)
    assert problems(path, stage="last") == ["FILE: no stage 'last': there are pretrain, sft"]
    single = written(path.parent, f"base: {TINY}/sft.yaml\n", "single.yaml")
    assert problems(single, stage="sft") == ["FILE: no stage 'sft': it has no stages"]
    assert "has no stages" in problems(single, "stages.sft.train.steps=1")[0]


def test_processes_have_to_fit_the_stages_that_run(path: Path):
    wide = "stages.sft.parallel.pipeline=4"
    assert list(load_runs(path, [wide], 4)) == ["pretrain", "sft"]
    (line,) = problems(path, wide, world_size=2)
    assert line.startswith("FILE: stages.sft: 2 processes do not fit parallel.tensor 1 x")
    assert list(load_runs(path, [wide], 2, "pretrain")) == ["pretrain"]
    assert len(problems(path, wide, world_size=2, stage="sft")) == 1
