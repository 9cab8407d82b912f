"""YAML files, bases and overrides become a checked configuration, or one clear message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from helpers.encoders import CLIP
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config, load_runs, save_config
from nvlm.config.checks import check_world_size
from nvlm.config.schema import SourceConfig
from nvlm.errors import ConfigError

RUNS = sorted((REPOSITORY / "configs" / "run").glob("*/*.yaml"))
TINY = REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml"


def message(*overrides: str, path: Path = TINY) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def run_name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.mark.parametrize("path", RUNS, ids=run_name)
def test_shipped_run_survives_saving(path: Path, tmp_path: Path):
    for config in load_runs(path).values():
        save_config(config, tmp_path / "config.yaml")
        assert load_config(tmp_path / "config.yaml") == config
    assert [left.name for left in tmp_path.iterdir()] == ["config.yaml"]


def test_every_part_is_used_by_a_run():
    """No model, data or stage file lies around that no run composes (and so no test loads)."""
    folder = REPOSITORY / "configs"
    bases = {
        (path.parent / base).resolve()
        for path in RUNS
        for base in yaml.safe_load(path.read_text()).get("base", [])
    }
    # Grids compose runs themselves: tests/ablate reads them.
    parts = {p.resolve() for p in folder.glob("*/*.yaml") if p.parent.name != "ablation"}
    assert parts == bases - {run.resolve() for run in RUNS}  # a run may build on another


def test_later_bases_and_the_file_itself_win(tmp_path: Path):
    (tmp_path / "first.yaml").write_text("run: {name: first, dir: first}\ntrain: {seed: 1}\n")
    (tmp_path / "second.yaml").write_text("run: {name: second}\n")
    (tmp_path / "run.yaml").write_text(
        f"base: [{TINY}, first.yaml, second.yaml]\ntrain: {{steps: 5}}\n"
    )
    config = load_config(tmp_path / "run.yaml", ["train.steps=6"])
    assert config.run.name == "second"
    assert config.run.dir == "first"
    assert config.train.seed == 1
    assert config.train.steps == 6


def test_override_types():
    config = load_config(
        TINY,
        [
            "parallel.tensor=2",
            "parallel.sequence=true",
            "train.optimizer.lr=5e-4",
            "stage.freeze=[]",
        ],
    )
    assert config.parallel.tensor == 2
    assert config.parallel.sequence is True
    assert config.train.optimizer.lr == 5e-4
    assert config.stage.freeze == []


def test_paths_beside_a_file_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(TINY)
    assert Path(config.model.tokenizer) == REPOSITORY / "assets" / "tiny" / "qwen2"
    # A path without a leading dot belongs to the working directory, not to the file.
    assert config.run.dir == "runs/tiny/sft"


@pytest.mark.parametrize(
    "override, unknown, suggestion",
    [
        ("train.stesp=3", "train.stesp", "train.steps"),
        ("trian.steps=3", "trian", "train"),
        ("model.vision.layers=3", "model.vision.layers", "model.vision.num_layers"),
        ("train.lr=1e-3", "train.lr", "train.optimizer.lr"),
        ("stage.sequence=512", "stage.sequence", "stage.sequence_length"),
        ("data.blend={a: {wieght: 2}}", "data.blend.a.wieght", "data.blend.a.weight"),
        (
            "data.blend={g: {blend: {blend: {path: x, max_tiles: 2}}}}",
            "data.blend.g.blend.blend.max_tiles",
            "data.blend.g.blend.blend.max_num_tiles",
        ),
    ],
)
def test_unknown_key_suggests_the_right_one(override: str, unknown: str, suggestion: str):
    assert f"unknown key '{unknown}'; did you mean '{suggestion}'?" in message(override)


def test_unknown_key_without_a_likely_name_lists_what_there_is():
    text = message("run.zzzz=1")
    assert "unknown key 'run.zzzz'" in text
    assert "'run' has name, dir" in text


@pytest.mark.parametrize(
    "override, key, found",
    [
        ("train.steps=many", "train.steps", "'many'"),
        ("train.steps=1.5", "train.steps", "1.5"),
        ("train.steps=0", "train.steps", "0"),
        ("train.precision=fp8", "train.precision", "'fp8'"),
        ("train.optimizer.beta2=1.5", "train.optimizer.beta2", "1.5"),
        ("data.num_workers=-1", "data.num_workers", "-1"),
        ("stage.tile_tags=2d", "stage.tile_tags", "'2d'"),
        ("parallel=4", "parallel", "4"),
        ("train.optimizer.lr=.inf", "train.optimizer.lr", ".inf"),
        ("data.blend={}", "data.blend", "{}"),
        ("data.blend={a: {blend: {}}}", "data.blend.a.blend", "{}"),
        ("data.blend={a: {blend: {b: -1}}}", "data.blend.a.blend.b", "-1"),
        ("data.blend={a: .inf}", "data.blend.a", ".inf"),
        ("data.blend={a: {max_epochs: .inf}}", "data.blend.a.max_epochs", ".inf"),
        ("data.blend={a: two}", "data.blend.a", "'two'"),
    ],
)
def test_wrong_value_names_key_and_value(override: str, key: str, found: str):
    text = message(override)
    assert f"{key}: " in text
    assert f"found {found}" in text


def test_a_blend_replaces_the_one_below(tmp_path: Path):
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text(f"base: {TINY}\ndata: {{blend: {{a: 1, b: {{weight: 2}}}}, num_workers: 3}}\n")
    above.write_text("base: below.yaml\ndata: {blend: {c: 1}}\n")
    config = load_config(above)
    assert (config.data.blend, config.data.num_workers) == ({"c": 1.0}, 3)
    assert load_config(below, ["data.blend={d: 4}"]).data.blend == {"d": 4.0}
    changed = load_config(below, ["data.blend.a=4"]).data.blend
    assert changed is not None and list(changed) == ["a", "b"] and changed["a"] == 4.0
    assert load_config(below, ["data.blend=null"]).data.blend is None


def test_missing_key(tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {TINY}\ntrain: null\n")
    assert "train" in message(path=path)
    path.write_text("run: {name: a, dir: b}\n")
    assert "missing key 'model'" in message(path=path)


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.steps 3"])
def test_override_without_key_or_value(override: str):
    assert "expected key=value" in message(override)


def test_missing_file(tmp_path: Path):
    missing = tmp_path / "none.yaml"
    assert f"{missing}: no such configuration file" in message(path=missing)
    child = tmp_path / "child.yaml"
    child.write_text("base: [none.yaml]\n")
    text = message(path=child)
    assert f"{missing}: no such configuration file" in text
    assert f"a base of {child}" in text


def test_base_cycle(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    text = message(path=tmp_path / "a.yaml")
    assert "is its own base" in text
    assert "b.yaml" in text


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("run: {name: [\n", "not readable as YAML"),
        ("- run\n- model\n", "must be a mapping"),
        (f"base: {TINY}\nrun: {{name: '${{nothing.here}}'}}\n", "nothing.here"),
        ("", "is empty"),
        ("# a comment\n", "is empty"),
        ("run: {name: a}\n---\nrun: {name: b}\n", "line 2, column 1: a second document"),
        ("run:\n\tname: a\n", "indent with spaces"),
        ("run:\n  name: a\n  dir: b\n  name: c\n", "line 4: the key 'name' is given twice"),
        ("run: {}\nrun: {}\n", "line 2: the key 'run' is given twice"),
        ("? [a]\n: b\n", "line 1: a key must be a word"),
        ("1: x\n", "unknown key '1'"),
        ("run: !!python/object/apply:os.system [x]\n", "!!python/object/apply:os.system"),
        ("run: !!int 5\n", "the tag '!!int'"),
        ("run: &x {name: *x}\n", "an alias holds itself"),
        ("run: *x\n", "undefined alias 'x'"),
        ("run: {<<: 3}\n", "line 1: << takes mappings"),
        ("[" * 3000, "nested deeper than 40"),
        ("".join(" " * i + "a:\n" for i in range(60)), "line 42: nested deeper than 40"),
        ("#" * 200_000, "200,000 bytes"),
        (
            "a0: &a0 [x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 20)),
            "more than 50,000 values",
        ),
        ("just words\n", "run.yaml"),
    ],
)
def test_file_of_another_kind(content: str, complaint: str, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    text = message(path=path)
    assert str(path) in text
    assert complaint in text


@pytest.mark.parametrize(
    "given, complaint",
    [
        ("null", "found nothing (null)"),
        ("{a: b}", "found {'a': 'b'}"),
        ("[a.yaml, null]", "found ['a.yaml', None]"),
        ("3", "3: no such configuration file (a base of"),
        ("folder", "folder: is a folder, not a configuration file (a base of"),
        ("pipe", "pipe: is a pipe or a device"),
        ("many0.yaml", "more than 100 bases"),
        ("$NVLM_NOT_SET/a.yaml", "the environment variable NVLM_NOT_SET is not set"),
        ('"a\\0b"', "found 'a\\x00b'"),
    ],
)
def test_base_of_another_kind(given: str, complaint: str, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for number in range(20):  # a million files, were they all read
        name = f"many{number + 1}.yaml"
        (tmp_path / f"many{number}.yaml").write_text(f"base: [{name}, {name}]\n")
    (tmp_path / "many20.yaml").write_text("train: {steps: 1}\n")
    (tmp_path / "run.yaml").write_text(f"base: {given}\n")
    assert complaint in message(path=tmp_path / "run.yaml")


def test_a_problem_names_the_file_or_override_that_has_it(tmp_path: Path):
    (tmp_path / "below.yaml").write_text(f"base: {TINY}\ntrain: {{steps: x, seed: -1}}\n")
    (tmp_path / "run.yaml").write_text("base: below.yaml\nlog: [every, 3]\n")
    text = message("stage.packing=perhaps", "train.seed=5", path=tmp_path / "run.yaml")
    assert text.startswith(f"{tmp_path / 'run.yaml'}: ")
    assert f"train.steps: must be a whole number of at least 1, found 'x' (in {tmp_path}/" in text
    assert "packing: must be true or false, found 'perhaps' (in override stage.packing=perh" in text
    assert text.endswith("log: must be a mapping of settings, such as {a: 1}, found ['every', '3']")
    assert "seed" not in text


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("train=[1]", "train: must be a mapping of settings"),
        ("train=", "train: must be a mapping of settings, such as {a: 1}, found nothing (null)"),
        ("stage.freeze.0=x", "stage.freeze: must be a list"),
        ("stage.freeze[0]=x", "a list is given whole: stage.freeze=[...]"),
        ("stage.freeze=x", "stage.freeze: must be a list, such as [a, b], found 'x'"),
        ("stage.freeze=[null]", "stage.freeze.0: must be a text"),
        ("train.steps={", "override train.steps={: not readable as YAML"),
        ("data.blend={a: 1, a: 2}", "the key 'a' is given twice"),
        ("parallel={tensr: 2}", "did you mean 'parallel.tensor'?"),
        ("a..b=3", "expected key=value"),
        ("run.name=\x1b[31m", r"found '\x1b[31m'"),
        ("run.name=\udcff", r"found '\udcff'"),
        ("run.name=", "run.name: must be a text, found nothing (null)"),
        ("run.name=${model.name}", "values of other keys are not put in"),
        ("run.dir=" + "a" * 300, "a path that a file system can hold, found 'aaaa"),
        ("data.split=../train", "the name of a folder, without `/`"),
        ("train.steps=" + "y" * 9999, "...yyyy"),
        ("x" * 500 + "=1", "...xxxx"),
    ],
)
def test_override_of_another_kind(override: str, complaint: str):
    text = message(override)
    assert complaint in text
    assert len(text) < 500


def test_of_two_overrides_the_last_counts_and_the_first_is_named(capsys):
    assert load_config(TINY, ["train.steps=5", "train.steps=6"]).train.steps == 6
    noted = capsys.readouterr().err
    assert (
        noted
        == "note: override train.steps=5 does not count: a later one leaves train.steps as 6\n"
    )
    load_config(TINY, ["train.steps=5", "train.steps=5"])
    assert load_config(TINY, ["data.blend={a: 1}", "data.blend.b=2"]).data.blend == {"a": 1, "b": 2}
    assert not capsys.readouterr().err
    assert load_config(TINY, ["data.blend.b=2", "data.blend={a: 1}"]).data.blend == {"a": 1}
    assert "data.blend.b=2 does not count" in capsys.readouterr().err


def test_sections_merge_and_maps_with_names_of_the_users_are_replaced(tmp_path: Path):
    below = tmp_path / "below.yaml"
    multipliers = "{optimizer: {lr_multipliers: {'vision_projection.*': 2}}}"
    below.write_text(f"base: {TINY}\ntrain: {multipliers}\nparallel: {{pipeline: 2}}\n")
    config = load_config(below, ["parallel={tensor: 2}"])
    assert (config.parallel.tensor, config.parallel.pipeline) == (2, 2)
    assert config.train.optimizer.lr_multipliers == {"vision_projection.*": 2}
    none = load_config(below, ["train.optimizer.lr_multipliers={}"])
    assert none.train.optimizer.lr_multipliers == {}


def test_anchors_and_merge_keys(tmp_path: Path):
    (tmp_path / "run.yaml").write_text(
        f"base: {TINY}\ndata:\n  blend:\n    a: &a {{weight: 2, max_epochs: 3}}\n"
        "    b: {<<: *a, weight: 5}\n"
    )
    blend = load_config(tmp_path / "run.yaml").data.blend
    assert blend is not None and isinstance(blend["b"], SourceConfig)
    assert (blend["b"].weight, blend["b"].max_epochs) == (5.0, 3.0)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00run", b"run: \x07\n", "run: é".encode("latin1")])
def test_binary_file(content: bytes, tmp_path: Path):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    assert str(path) in message(path=path)


@pytest.mark.parametrize(
    "overrides, expected",
    [
        # Tiny: 8 stored vision heads, 8 heads and 4 groups, 4 layers, 21 tokens per tagged tile.
        (["parallel.tensor=3"], "parallel.tensor 3 does not divide"),
        (["parallel.tensor=8"], "model.language.num_query_groups 4"),
        (["parallel.pipeline=3"], "does not divide model.language.num_layers 4"),
        (["parallel.virtual_pipeline=2"], "needs parallel.pipeline of at least 2"),
        (
            ["parallel.pipeline=2", "parallel.virtual_pipeline=3"],
            "parallel.pipeline 2 x parallel.virtual_pipeline 3 does not divide",
        ),
        (["parallel.pipeline=2", "parallel.layout=[4]"], "parallel.layout has 1 stages"),
        (["parallel.pipeline=2", "parallel.layout=[1, 2]"], "parallel.layout has 3 layers"),
        (
            ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.layout=[1, 3]"],
            "stage 0 has one number, parallel.virtual_pipeline is 2: write a list of 2 numbers",
        ),
        (
            ["parallel.pipeline=2", "parallel.layout=[[1, 1], [1, 1]]"],
            "stage 1 has 2 chunks, parallel.virtual_pipeline is 1: write its sum",
        ),
        (["parallel.sequence=true"], "needs parallel.tensor of at least 2"),
        (
            ["parallel.tensor=2", "parallel.sequence=true", "stage.sequence_length=513"],
            "= 513",
        ),
        (["stage.sequence_length=163"], "at least 164 tokens"),
        (["stage.sequence_length=8192"], "max_position_embeddings 4096"),
        (["stage.max_tiles_per_sequence=6"], "less than the 7 tiles"),
        (["train.micro_batch_size=3"], "train.global_batch_size 4 is not a multiple"),
        (["train.optimizer.min_lr=1.0"], "exceeds train.optimizer.lr"),
        (
            ["data.blend={a: {blend: {b: {max_num_tiles: 12}}}}"],
            "data.blend.a.blend.b.max_num_tiles 12 exceeds stage.max_num_tiles 6",
        ),
        (["stage.max_num_tiles=129"], "stage.max_num_tiles: must be a whole number from 1 to 128"),
        (["train.schedule.decay_steps=10"], "must be less than train.schedule.decay_steps 10"),
        (["model.vision.hidden_size=161"], "model.vision.num_attention_heads 5"),
        (["model.vision.num_stored_attention_heads=4"], "is less than"),
        (["model.vision.image_size=98"], "2 must divide 7"),
        (["model.vision.feature_layers=[-1]"], "name two layers or more"),
        (["model.vision.feature_layers=[-1, -3]"], "from the first to the last"),
        (["model.vision.feature_layers=[-9, -1]"], "-9 is before the first of 4 layers"),
        (["model.vision.feature_layers=[-3, -2]"], "-1 has to be among them"),
        (["model.vision.feature_layers=-1"], "must be a list, such as"),
        (
            [CLIP.replace("feature_layer: -2", "feature_layer: -2, feature_layers: [-3, -1]")],
            "give one of the two",
        ),
        (["model.language.hidden_size=190"], "model.language.num_attention_heads 8"),
        (["model.language.num_query_groups=3"], "model.language.num_query_groups 3"),
        (
            ["model.layer_implementation=transformer_engine", "train.precision=fp32"],
            "takes no fp32; use local or auto",
        ),
        (["train.recompute.language.num_layers=2"], "granularity full, which is none"),
        (
            [
                "parallel.pipeline=2",
                "train.recompute.language.granularity=full",
                "train.recompute.language.num_layers=3",
            ],
            "num_layers 3 is more than the 2 language layers of a pipeline stage",
        ),
        (
            [
                "parallel.pipeline=2",
                "parallel.layout=[1, 3]",
                "train.recompute.language.granularity=full",
                "train.recompute.language.num_layers=4",
            ],
            "num_layers 4 is more than the 3 language layers of a pipeline stage",
        ),
        (
            [
                "parallel.pipeline=2",
                "parallel.virtual_pipeline=2",
                "train.recompute.language.granularity=full",
                "train.recompute.language.num_layers=1",
            ],
            "not a multiple of parallel.virtual_pipeline 2",
        ),
        (
            ["train.recompute.vision.granularity=full"],
            "stage.freeze 'vision_model.*' freezes the vision model",
        ),
    ],
)
def test_contradictions_between_sections(overrides: list[str], expected: str):
    text = message(*overrides)
    assert str(TINY) in text
    assert expected in text


def test_every_problem_of_a_layout_is_said_at_once():
    text = message(
        "parallel.pipeline=3", "parallel.virtual_pipeline=2", "parallel.layout=[[1, 1], [2]]"
    )
    for problem in ("has 2 stages", "parallel.pipeline is 3", "stage 1 has 1 chunks"):
        assert problem in text
    assert "layers," not in text  # they are four, as they should be


@pytest.mark.parametrize("layout", ["auto", [1, 0, 3], [[1, 0], [1, 1], [0, 1]]])
def test_layouts_that_no_even_cut_could_have(layout: str | list, tmp_path: Path):
    virtual = 2 if isinstance(layout[0], list) else 1
    config = load_config(
        TINY,
        [
            "parallel.pipeline=3",
            f"parallel.virtual_pipeline={virtual}",
            f"parallel.layout={layout}",
        ],
    )
    assert config.parallel.layout == layout
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_shortest_sequence_that_holds_an_image():
    """7 tiles x 21 tokens and 17 around them; one token less is refused above."""
    assert load_config(TINY, ["stage.sequence_length=164"]).stage.sequence_length == 164
    merged = ["stage.sequence_length=163", "stage.image_boundary=merged"]
    assert load_config(TINY, merged).stage.sequence_length == 163


@pytest.mark.parametrize(
    "overrides, world_size, data_parallel",
    [
        ([], 1, 1),
        (["train.global_batch_size=8"], 8, 8),
        (["parallel.tensor=2"], 2, 1),
        (["parallel.tensor=2", "parallel.pipeline=2"], 8, 2),
        (["train.micro_batch_size=2", "train.global_batch_size=8"], 4, 4),
    ],
)
def test_world_size_leaves_the_data_parallel_size(
    overrides: list[str], world_size: int, data_parallel: int
):
    assert check_world_size(load_config(TINY, overrides), world_size) == data_parallel


@pytest.mark.parametrize(
    "overrides, world_size, expected",
    [
        (["parallel.tensor=2"], 3, "3 processes do not fit"),
        (["parallel.tensor=2", "parallel.pipeline=2"], 2, "start a multiple of 4"),
        ([], 3, "train.global_batch_size 4 is not a multiple"),
        (["train.micro_batch_size=4"], 4, "= 16"),
        (
            [
                "parallel.pipeline=2",
                "parallel.virtual_pipeline=2",
                "train.global_batch_size=6",
            ],
            4,
            "and there are 3: make train.global_batch_size 6 a multiple of 4",
        ),
    ],
)
def test_world_size_that_does_not_fit(overrides: list[str], world_size: int, expected: str):
    config: RunConfig = load_config(TINY, overrides)
    with pytest.raises(ConfigError, match=expected):
        check_world_size(config, world_size)
