"""What holds for the repository as a whole: its words, its README, its scripts, its versions."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import click
import pytest
import typer
import yaml
from helpers.paths import REPOSITORY
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from nvlm.cli import app
from nvlm.cli.app import VerbOrArguments
from nvlm.config import load_config, load_runs
from nvlm.config.compose import validate
from nvlm.config.shipped import find_run
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.estimate import make_plan
from nvlm.plan.hardware import CARDS, DEFAULT_CARD
from nvlm.plan.kernels import kernels_on
from nvlm.plan.work import largest_work
from nvlm.sizes.flops import step_flops

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
]
SCRIPTS = [
    "scripts/fetch_timm",
    "scripts/fetch_transformer_engine",
    "scripts/install",
    "scripts/quickstart",
    "scripts/test",
    ".ci/run",
]
# What `scripts/install` does again where one of them has changed.
LISTED = [
    "pyproject.toml",
    "constraints.txt",
    "scripts/transformer_engine.txt",
    "scripts/timm.txt",
]
GENERATED = {".git", ".venv", "runs", "build", "dist"}


def text_files() -> Iterator[Path]:
    """Every file of the repository that is text and not generated."""
    for folder, folders, files in os.walk(REPOSITORY):
        folders[:] = [
            name
            for name in folders
            if name not in GENERATED and not name.endswith((".egg-info", "cache", "cache__"))
        ]
        for name in set(files) - GENERATED:  # in a git worktree `.git` is a file
            path = Path(folder, name)
            if b"\0" not in path.read_bytes()[:8192]:
                yield path


@functools.cache
def host_lines(path: Path) -> set[int]:
    """Lines that name the CPU as a device."""
    if path.parent.name in ("hf_files", "demo"):
        return set()
    return {n.lineno for n in ast.walk(ast.parse(path.read_text())) if names_the_host(n)}


def names_the_host(node: ast.AST) -> bool:
    """Code that says "cpu" as a device: a text, an attribute or method, an import."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and re.fullmatch(r"cpu(:\d+)?", node.value) is not None
    if isinstance(node, ast.Attribute):
        return node.attr == "cpu"
    return isinstance(node, ast.alias) and node.name.split(".")[-1] == "cpu"


def test_device_words_stay_in_the_platform():
    """Also in comments and messages; exports run where this project is not installed."""
    words = re.compile("cuda|nccl|gloo", re.IGNORECASE)
    # Where torch.load shall put a file's tensors: in memory, whatever device wrote it.
    into_memory = re.compile('map_location="cpu"')
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in sorted((REPOSITORY / "nvlm").rglob("*.py"))
        if path.parent != REPOSITORY / "nvlm" / "platform"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if words.search(line) or (number in host_lines(path) and not into_memory.search(line))
    ]
    assert not found, "\n".join(found)
    # The words are looked for rightly: the platform has them.
    of_the_cpu = REPOSITORY / "nvlm" / "platform" / "cpu.py"
    assert words.search(of_the_cpu.read_text()) and host_lines(of_the_cpu)


def test_no_index_host_or_place_of_one_machine():
    """Where packages come from is pip's configuration; nothing depends on a developer's folders."""
    hosts = ["pypi" + ".org", "python" + "hosted", "download." + "pytorch", "extra-" + "index-url"]
    folders = [f"{root}(/|\\b(?!/))" for root in ("(?<![\\w.])/tm" + "p", "(?<![\\w.])/wor" + "k")]
    words = re.compile("|".join([*map(re.escape, hosts), *folders]))
    found = [
        f"{path.relative_to(REPOSITORY)}: {match.group()}"
        for path in text_files()
        for match in words.finditer(path.read_text(errors="replace"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "path",
    sorted(
        path
        for path in (REPOSITORY / "configs").rglob("*.yaml")
        if path.parent.name != "ablation"  # grids: tests/ablate reads them
    ),
    ids=lambda path: path.stem,
)
def test_configuration_loads(path: Path):
    """Runs load whole; parts have only sections and keys that a run may have."""
    if path.parent.parent.name == "run":
        load_runs(path)
        return
    run = yaml.safe_load((REPOSITORY / "configs/run/tiny/sft.yaml").read_text())
    assert "base" in run
    resolved = load_config(REPOSITORY / "configs/run/tiny/sft.yaml").model_dump()
    part = yaml.safe_load(path.read_text())
    assert part, f"{path} is empty"
    for section, values in part.items():
        resolved[section] = values if section != "stage" else {**resolved[section], **values}
    validate(resolved, where=str(path))


def readme_commands() -> list[str]:
    """The lines of the README's indented code blocks, continuation lines joined."""
    lines = (REPOSITORY / "README.md").read_text().replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


def nvlm_commands() -> list[list[str]]:
    """Arguments of each `nvlm ...` and `... -m nvlm ...` in the README."""
    found = []
    for line in readme_commands():
        match = re.match(r"nvlm ((?!/).*)", line) or re.search(r"-m nvlm (.*)", line)
        if match:
            found.append(shlex.split(match.group(1).rstrip("'")))
    return found


def test_readme_opens_with_the_two_commands():
    assert [command.split()[0] for command in readme_commands()[:2]] == [
        "scripts/quickstart",
        "scripts/test",
    ]


def test_readme_shows_every_kind_of_command():
    verbs = {arguments[0] for arguments in nvlm_commands()}
    assert verbs == {
        "ablate", "config", "convert", "data", "doctor", "evaluate", "generate", "model", "plan",
        "report", "serve", "stop", "train",
    }  # fmt: skip


@pytest.mark.parametrize("arguments", nvlm_commands(), ids=" ".join)
def test_readme_command_parses(arguments: list[str]):
    """The verb and its options exist; its configuration and overrides are accepted."""
    command = typer.main.get_command(app)
    arguments = list(arguments)
    context = click.Context(command, info_name="nvlm")
    while hasattr(command, "commands"):
        # `nvlm evaluate` takes a checkpoint where none of its own verbs is named.
        if isinstance(command, VerbOrArguments) and arguments[0] not in command.commands:
            break
        name = arguments.pop(0)
        assert name in command.commands, f"nvlm has no verb {name}"
        command = command.commands[name]
    parsed = command.make_context(command.name, arguments, parent=context).params
    if parsed.get("config"):
        path = find_run(str(parsed["config"]))
        load_runs(path, parsed.get("overrides") or [], None, parsed.get("stage"))


def test_readme_gpu_hours():
    """Operations of the first GPU run's two stages, and hours at the share of the peak named."""
    total = 0
    for stage in ("pretrain", "sft"):
        config = load_config(REPOSITORY / f"configs/run/internvit_300m_qwen2_0_5b/{stage}.yaml")
        cost, length = step_flops(config), config.stage.sequence_length
        # As many tiles as fit, and one document per sequence: the most that it can cost.
        num_tiles = length // config.num_tokens_per_tagged_tile
        sequence = length * cost.per_token + length**2 // 2 * cost.per_token_pair
        sequence += num_tiles * cost.per_tile
        total += config.train.steps * config.train.global_batch_size * sequence
    text = " ".join((REPOSITORY / "README.md").read_text().split())
    found = re.search(
        r"stages are (\d)e(\d+) floating-point operations: (\d+) hours for one node of eight H100s "
        r"that reaches (\d+) %",
        text,
    )
    assert found, "the README no longer says what the first GPU run takes"
    digit, power, hours, percent = map(int, found.groups())
    assert round(total / 10**power) == digit
    h100_dense_bf16 = 989e12
    assert round(total / (8 * h100_dense_bf16 * percent / 100) / 3600) == hours


def test_readme_planned_hours():
    """What `nvlm plan` says of the same run."""
    plans = []
    for stage in ("pretrain", "sft"):
        config = load_config(REPOSITORY / f"configs/run/internvit_300m_qwen2_0_5b/{stage}.yaml")
        card = CARDS[DEFAULT_CARD]
        assumptions = assumptions_for(card, {}, kernels_on(config, card))
        plans.append(make_plan(config, 8, assumptions, largest_work(config)))
    text = " ".join((REPOSITORY / "README.md").read_text().split())
    found = re.search(r"--gpus 8` hopes for ([\d.]+) hours, at (\d+) to (\d+) %", text)
    assert found, "the README no longer says what the plan of the first GPU run is"
    assert f"{sum(plan.hours for plan in plans):.1f}" == found[1]
    assert [round(100 * plan.mfu) for plan in plans] == [int(found[2]), int(found[3])]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_files_that_exist(document: str):
    text = (REPOSITORY / document).read_text()
    named = re.findall(
        r"`((?:configs|nvlm|demo|tests|scripts|docs|docker|assets|benchmarks)/[\w./*-]+)(?::[^`]*)?`",
        text,
    )
    linked = [
        os.path.normpath(Path(document).parent / target)
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text)
    ]
    missing = [name for name in named + linked if not any(REPOSITORY.glob(name.rstrip("/")))]
    assert not missing


def test_contributors_are_told_names_that_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`(_?[A-Z]+(?:_[A-Z]+)+|_[a-z_]+|[A-Z][a-z]+[A-Z]\w+)`", text))
    assert len(named) > 5
    code = "\n".join(path.read_text() for path in text_files() if path.suffix == ".py")
    missing = {name for name in named if not re.search(rf"\b{name}\b", code)}
    assert not missing


def test_code_and_documents_name_modules_that_exist():
    """In full (nvlm/data/order/lengths.py), or from one of nvlm's folders on (order/lengths.py)."""
    modules = {str(path.relative_to(REPOSITORY)) for path in text_files() if path.suffix == ".py"}
    endings = {path[start.start() :] for path in modules for start in re.finditer(r"\b\w", path)}
    rooms = {path.parent.name for path in (REPOSITORY / "nvlm").rglob("*.py")}
    named = re.compile(
        rf"(?<![\w./])((?:nvlm|demo|tests|benchmarks|{'|'.join(rooms)})/(?!core/)[a-z_0-9/]+\.py)\b"
    )
    programs = [path for room in ("nvlm", "demo") for path in (REPOSITORY / room).rglob("*.py")]
    missing = [
        f"{path.relative_to(REPOSITORY)}: {match[1]}"
        for path in [*programs, *(REPOSITORY / document for document in DOCUMENTS)]
        for match in named.finditer(path.read_text())
        if match[1] not in endings
        # The reader of that page writes these files.
        and not (path.name == "extend.md" and match[1].endswith("connectors/row_pooling.py"))
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_runs_as_a_program(script: str):
    path = REPOSITORY / script
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    subprocess.run(["bash", "-n", path], check=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `scripts/install` reads, in a folder of its own."""
    for name in (*LISTED, "scripts/install"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(REPOSITORY / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    "script", ["fetch_timm", "fetch_transformer_engine", "quickstart", "install", "test"]
)
def test_help_of_scripts_installs_nothing(script: str, checkout: Path):
    shutil.copy2(REPOSITORY / "scripts" / script, checkout / "scripts" / script)
    for option in ("--help", "-h"):
        done = subprocess.run(
            [checkout / "scripts" / script, option], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"scripts/{script} " in done.stdout and "set -" not in done.stdout
    if script == "quickstart":
        verb = typer.main.get_command(app).commands["demo"]  # type: ignore[attr-defined]
        for parameter in verb.params:
            assert all(name in done.stdout for name in parameter.opts + parameter.secondary_opts)
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    "command, complaint",
    [
        (["quickstart", "--foo"], "unknown option '--foo'"),
        (["quickstart", "--root"], "--root needs a folder"),
        (["quickstart", "--fresh", "x"], "unknown option 'x'"),
        (["install", "--dev"], "'--dev' is not one of the extras of pyproject.toml"),
        (["install", "dve"], "'dve' is not one of the extras"),
        (["install", "dev", "cuda"], "'dev cuda' is not one of the extras"),
    ],
)
def test_wrong_options_of_scripts_install_nothing(
    command: list[str], complaint: str, checkout: Path
):
    shutil.copy2(REPOSITORY / "scripts" / "quickstart", checkout / "scripts" / "quickstart")
    done = subprocess.run(
        [checkout / "scripts" / command[0], *command[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and complaint in done.stderr
    assert not (checkout / ".venv").exists()


def test_install_refuses_an_old_python(checkout: Path):
    programs = checkout / "programs"
    programs.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        (programs / name).write_text(
            '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n'
        )
        (programs / name).chmod(0o755)
    done = subprocess.run(
        ["scripts/install"],
        cwd=checkout,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nvlm needs Python 3.11 or newer; found Python 3.9.2" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    "installed, extras", [("", [""]), ("-demo", ["", "demo"]), ("-dev", ["", "demo", "dev"])]
)
def test_install_does_nothing_when_it_is_done(installed: str, extras: list[str], checkout: Path):
    """The stamp holds the folder and the contents of the files that list what is installed."""
    contents = b"".join((checkout / name).read_bytes() for name in LISTED)
    digest = subprocess.run(["sha256sum"], input=contents, capture_output=True, check=True)
    (checkout / ".venv").mkdir()
    stamp = checkout / ".venv" / f"nvlm-installed{installed}"
    stamp.write_text(f"{checkout} {digest.stdout.split()[0].decode()}\n")
    # There is no .venv/bin/python: nothing but the stamp keeps it from making one.
    for extra in extras:
        done = subprocess.run(
            ["scripts/install", *filter(None, [extra])],
            cwd=checkout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "")
        assert [left.name for left in (checkout / ".venv").iterdir()] == [stamp.name]


def test_install_takes_out_a_torchvision_that_does_not_fit(checkout: Path):
    """`.venv/bin/python` here only notes what it is asked, and cannot import torchvision."""
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/lib/python3.11/site-packages/torchvision").mkdir(parents=True)
    (checkout / ".venv/nvlm-folder").write_text(f"{checkout}\n")
    python = checkout / ".venv/bin/python"
    python.write_text(
        '#!/bin/sh\necho "$*" >> asked\n[ "$*" != "-c import torchvision" ] || exit 1\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["scripts/install"], cwd=checkout, capture_output=True, text=True, check=True
    )
    asked = (checkout / "asked").read_text().splitlines()
    assert asked[-1] == "-m pip uninstall --quiet --yes torchvision timm"
    assert "Removed torchvision (and timm, which needs it) from .venv" in done.stdout
    assert (checkout / ".venv/nvlm-installed").is_file()


def test_tested_versions_fit_what_is_asked_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = {
        pin.name.replace("_", "-").lower(): next(iter(pin.specifier)).version
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
        for pin in [Requirement(line)]
    }
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["demo"] + extras["dev"]:
        asked = Requirement(line)
        if asked.name == "nvlm":  # one extra holds another
            continue
        assert asked.name in pins, f"constraints.txt does not pin {asked.name}"
        assert pins[asked.name] in asked.specifier, f"{asked} excludes {pins[asked.name]}"
    assert (pins["torch"], pins["megatron-core"]) == ("2.13.0", "0.16.1")
    # transformers imports torchvision where it is, and fails where its build is not torch's.
    assert not {"torchvision", "timm"} & pins.keys()


def test_install_fetches_transformer_engine_for_development(checkout: Path):
    """`.venv/bin/python` here only notes what it is asked; a version that is there stays."""
    for script in ("fetch_timm", "fetch_transformer_engine"):
        shutil.copy2(REPOSITORY / "scripts" / script, checkout / "scripts")
    (timm,) = re.findall(r"^timm==(.+)$", (checkout / "scripts/timm.txt").read_text(), re.M)
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / f".venv/timm/{timm}").mkdir(parents=True)
    (checkout / ".venv/transformer_engine/2.10.0").mkdir(parents=True)
    (checkout / ".venv/nvlm-folder").write_text(f"{checkout}\n")
    python = checkout / ".venv/bin/python"
    # Makes the folder that follows `--target`, as pip would, and notes the requirement.
    python.write_text(
        '#!/bin/bash\n[[ "$*" == *--require-hashes* ]] || exit 0\n'
        'mkdir -p "${*: -3:1}"; cat "${*: -1}" >> asked\n'
    )
    python.chmod(0o755)
    for extra, expected in (("demo", []), ("dev", ["2.9.0", "2.11.0"])):
        subprocess.run(
            ["scripts/install", extra], cwd=checkout, check=True, capture_output=True, text=True
        )
        asked = checkout / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        found = [re.fullmatch(r"transformer_engine==(\S+) --hash=sha256:\w{64}", x) for x in lines]
        assert [match and match[1] for match in found] == expected
    folders = {path.name for path in (checkout / ".venv/transformer_engine").iterdir()}
    assert folders == {"2.9.0", "2.10.0", "2.11.0"}


def test_fetched_versions_of_transformer_engine_are_those_of_the_extra():
    """Each minor version that the extra `cuda` allows."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (asked,) = extras["optional-dependencies"]["cuda"]
    listed = (REPOSITORY / "scripts/transformer_engine.txt").read_text()
    minors = re.findall(r"^transformer_engine==2\.(\d+)\.\d+ ", listed, re.M)
    allowed = [str(n) for n in range(100) if Requirement(asked).specifier.contains(f"2.{n}.0")]
    assert minors == allowed


def test_pins_admit_the_oldest_python():
    """A release that asks for a later one cannot be installed there; pip only says "conflict"."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    oldest = settings["requires-python"].removeprefix(">=") + ".0"
    pinned = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    looked_at = 0
    for found in distributions():
        name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
        asked = found.metadata["Requires-Python"]
        if name in pinned and asked:
            looked_at += 1
            assert SpecifierSet(asked).contains(oldest), f"{name} asks for Python {asked}"
    assert looked_at > len(pinned) / 2
