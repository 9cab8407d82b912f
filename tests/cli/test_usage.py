"""What the command line says of itself: help, versions, completion, wrong arguments, paths."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import typing
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from nvlm import cli
from nvlm.cli.arguments import path_of_user
from nvlm.errors import ConfigError, NvlmError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nvlm", *arguments])
    return cli.run_app()


def verbs(command, words: tuple[str, ...] = ()):
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from verbs(below, (*words, name))


@pytest.mark.parametrize("words", list(verbs(typer.main.get_command(cli.app))), ids=" ".join)
def test_help_fits_80_columns(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, *words, "--help") == 0
    text = capsys.readouterr().out
    assert " ".join(["Usage: nvlm", *words]) in text
    assert max(map(len, text.splitlines())) <= 80
    assert not any(line.endswith("...") for line in text.splitlines()[1:])  # nothing cut off
    assert text.isascii() and "\x1b" not in text


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["trian"], "nvlm: no such command 'trian'. Did you mean 'train'?"),
        (["data", "stat"], "nvlm data: no such command 'stat'. Did you mean 'stats'"),
        (["train"], "nvlm train: missing argument 'CONFIG'; see `nvlm train --help`"),
        (["data", "order", "a.yaml", "--step", "3"], "nvlm data order: no such option: --step"),
        (["data", "order", "a.yaml", "--steps", "0"], "invalid value for '--steps'"),
        (["data", "order", "a.yaml", "--steps", "many"], "invalid value for '--steps'"),
        (["data", "order", "a.yaml", "--steps", "9" * 25], "should be less than or equal to"),
        (["data", "preview", "a.yaml", "--samples", "9" * 25], "should be less than or equal to"),
        (["data", "stats", "a.yaml", "--steps", "-3"], "invalid value for '--steps'"),
        (["data", "preview", "a.yaml", "--samples", "0"], "invalid value for '--samples'"),
        (["data", "build-demo", "a", "--seed", "-1"], "invalid value for '--seed'"),
        (["convert", "verify", "a"], "missing argument 'B'"),
        (["convert", "verify", "$NVLM_UNSET/a", "b"], "variable NVLM_UNSET is not set"),
        (["data", "preview", "a", "--out", "~nobody-of-this-name/a"], "'nobody-of-this-name'"),
        (["config", "show", "[bold]x[/bold].yaml"], "[bold]x[/bold].yaml: no such configuration"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ConfigError) as caught:
        run(monkeypatch, *arguments)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("group", [[], ["config"], ["data"]], ids=" ".join)
def test_nothing_after_a_group_is_answered_with_help(
    group: list[str], monkeypatch: pytest.MonkeyPatch, capsys
):
    assert run(monkeypatch, *group) == 2
    assert "Commands:" in capsys.readouterr().err


def test_a_verb_behind_a_verb_with_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What is named first decides; a folder of that name is given with its path."""
    said = {}
    for first in ("rescore", "./rescore", str(tmp_path / "rescore")):
        with pytest.raises(NvlmError) as caught:
            run(monkeypatch, "evaluate", first)
        said[first] = str(caught.value)
    assert said.pop("rescore").startswith("nvlm evaluate rescore: missing argument 'FOLDER'")
    for message in said.values():
        assert message.startswith("nvlm evaluate: missing option '--out'")


def test_versions(monkeypatch: pytest.MonkeyPatch, capsys):
    assert run(monkeypatch, "--version") == 0
    said = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["python"] == platform.python_version()
    for package in ("nvlm", "torch", "megatron-core", "transformers"):
        assert said[package] == version(package)
    assert "transformer-engine" in said


def test_completion_imports_no_torch():
    """A shell asks at every press of the tabulator."""
    program = (
        "import sys\nfrom nvlm.cli import run_app\n"
        "try:\n    run_app()\n"
        "finally:\n    assert not {'torch', 'megatron', 'numpy'} & set(sys.modules)\n"
    )
    asked = {"_NVLM_COMPLETE": "complete_bash", "COMP_WORDS": "nvlm data st", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("stats\n", "")


def test_paths_of_the_command_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert path_of_user("~/x") == Path("/home/somebody/x")
    assert path_of_user("${HOME}/x") == Path("/home/somebody/x")
    assert path_of_user("x") == Path("x")
    groups = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    groups += [some.cls.verbs for some in cli.app.registered_commands if hasattr(some.cls, "verbs")]
    for command in [command for group in groups for command in group.registered_commands]:
        for name, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            if "pathlib" in str(hint) and name != "config":  # load_config does it there
                assert hint.__metadata__[0].parser is path_of_user, (command.callback, name)


def test_options_that_are_not_given_have_their_defaults():
    """`nvlm demo` is what the quickstart calls."""
    command = typer.main.get_command(cli.app).commands["demo"]  # type: ignore[attr-defined]
    parsed = command.make_context("demo", []).params
    assert parsed == {"root": Path("runs/demo"), "fresh": False}
