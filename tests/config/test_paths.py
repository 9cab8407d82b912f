"""`~`, `$NAME` and `./` in every key that is a path, in files and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config, save_config
from nvlm.config.paths import expand_path
from nvlm.errors import ConfigError

TINY = REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml"
PATHS = ["run.dir", "data.root", "data.index_dir", "data.prompt_pools", "checkpoint.load",
         "train.distill.teacher", "model.tokenizer", "data.blend.a.path",
         "data.blend.a.blend.b.path"]  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("NVLM_FOLDER", "/big/disk")
    monkeypatch.setenv("NVLM_EMPTY", "")
    monkeypatch.delenv("NVLM_UNSET", raising=False)


def value_of(config, key: str):
    for part in key.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return config


def write(folder: Path, key: str, text: str) -> Path:
    path = folder / "run.yaml"
    first, *rest = key.split(".")
    inner = "".join(f"{{{part}: " for part in rest) + f"'{text}'" + "}" * len(rest)
    path.write_text(f"base: {TINY}\n{first}: {inner}\n")
    return path


@pytest.mark.parametrize("key", PATHS)
def test_every_path_key(key: str, tmp_path: Path):
    for text, expected in [
        ("~/x", "/home/somebody/x"),
        ("~", "/home/somebody"),
        ("~root/x", "/root/x"),
        ("$NVLM_FOLDER/x", "/big/disk/x"),
        ("${NVLM_FOLDER}x", "/big/diskx"),
        ("a~b", "a~b"),
    ]:
        assert value_of(load_config(write(tmp_path, key, text)), key) == expected
        assert value_of(load_config(TINY, [f"{key}={text}"]), key) == expected
    beside = value_of(load_config(write(tmp_path, key, "./x")), key)
    assert beside == str(tmp_path / "x")


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("$NVLM_UNSET/x", "the environment variable NVLM_UNSET is not set"),
        ("${NVLM_UNSET}/x", "the environment variable NVLM_UNSET is not set"),
        ("$NVLM_EMPTY/x", "the environment variable NVLM_EMPTY is not filled"),
        ("~nobody-of-this-name/x", "no home folder of user 'nobody-of-this-name'"),
        ("runs/${run.name}", "values of other keys are not put in"),
        ("${oc.env:HOME}/x", "${oc.env:HOME} is not an environment variable"),
    ],
)
def test_what_cannot_be_put_in_is_named(text: str, complaint: str, tmp_path: Path):
    for path, overrides, name in [
        (write(tmp_path, "data.root", text), [], f"{tmp_path}/run.yaml: data.root: "),
        (TINY, [f"data.root={text}"], f"override data.root={text}: data.root: "),
    ]:
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        assert str(caught.value).startswith(name)
        assert complaint in str(caught.value)


def test_a_variable_is_put_in_once(monkeypatch: pytest.MonkeyPatch):
    """Else a saved configuration would be read as something else than was trained."""
    monkeypatch.setenv("NVLM_FOLDER", "/a/$HOME")
    with pytest.raises(ConfigError, match=r"still has \$HOME"):
        expand_path("$NVLM_FOLDER/x")


@pytest.mark.parametrize("text", ["./x", "../x", "./~x", "..", ".", "x/../../y"])
def test_a_saved_configuration_means_the_same_from_its_own_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    config = load_config(TINY, [f"data.root={text}"])
    assert Path(config.data.root).resolve() == (work / text).resolve()
    save_config(config, "runs/a/config.yaml")
    assert load_config("runs/a/config.yaml") == config


def test_text_that_is_no_path_stays(tmp_path: Path):
    for text in ("~/x", "./x", "costs $HOME"):
        assert load_config(TINY, [f"stage.system_message={text}"]).stage.system_message == text
    name = load_config(write(tmp_path, "run.name", "./x"))
    assert name.run.name == "./x"


def test_the_file_itself_may_be_below_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(f"base: {TINY}\n")
    (tmp_path / "above.yaml").write_text("base: ~/run.yaml\n")
    assert load_config("~/above.yaml") == load_config(TINY)
