"""Whatever a file or override holds: a configuration that survives saving, or one line.

Seeds are fixed, so a failure is found again. Each case is a shipped run, or one as it is saved,
with a few random changes of lines, characters and values.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.config.compose import Runs, load_runs, to_yaml, validate
from nvlm.config.schema import RunConfig
from nvlm.config.stage_file import as_file
from nvlm.config.wording import _all_keys
from nvlm.config.yaml_file import read_yaml
from nvlm.errors import ConfigError

RUNS = sorted((REPOSITORY / "configs" / "run").glob("*/*.yaml"))
KEYS = [*_all_keys(RunConfig), "data.blend.a", "data.blend.a.blend.b", "data.blend.a.weight"]
MOST_SECONDS = 3.0

VALUES = [
    *("", "null", "~", "[]", "{}", "[1]", "[[]]", "{a: b}", "[null]", "{a: {blend: {}}}"),
    *("0", "-1", "1", "5", "010", "0x10", "1e3", "1e400", "-0.0", ".nan", ".inf", "1:30", "1_0"),
    *("9" * 30, "9" * 5000, "5e-324", "1e15", "4294967295", "2147483648", "٣", "²", "1,5"),
    *("true", "no", "ON", "y", "'true'", '"5"', "'", '"', '"\\ud800"', '"\\0"', '"\\x85"'),
    *("~/x", "~nobody-of-this-name", "$HOME/x", "$NVLM_UNSET", "${HOME}", "${run.name}", "$", "${"),
    *("./x", "../x", ".", "..", "./~", "/", "//", "a/../../b", "x" * 300, "a/" * 3000, "a\tb"),
    *("\x00", "\x1b[31m", "\x85", "\ufeff", "\u2028", "\udcff", "é", "😀", "a\nb", "a\rb", "\r\n"),
    *("*x", "&x 5", "&x [*x]", "!x 5", "!!int 5", "!!binary aGk=", "!!python/name:os.getcwd", "<<"),
    *("# c", "a: b", "- a", "? a", "|", ">-", "|\n  a", "%x", "@x", "`x`", "---", "...", "a #b"),
    *("[" * 2000, "{a: " * 200, "none", "fp32", "random", "2d_box", "nan", "NULL", "'null'"),
]  # fmt: skip

PLAUSIBLE = ["1", "2", "64", "512", "1000000", "0.5", "1e-3", "tiny", "true", "a/b", "[a, b]", "1d"]


def hostile(folder: Path) -> list[str]:
    marker = folder / "executed"
    return [
        f"!!python/object/apply:os.mkdir ['{marker}']",
        f"!!python/object/new:os.mkdir [{marker}]",
    ]


def chosen(values: list[str], chance: random.Random) -> str:
    return chance.choice(chance.choice([values, PLAUSIBLE]))


def changed_text(text: str, values: list[str], chance: random.Random) -> str:
    lines = text.split("\n")
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(lines))
        line = lines[at]
        key = line.partition(":")[0]
        match chance.randrange(9):
            case 0:
                lines.insert(at, line)
            case 1:
                lines[at] = ""
            case 2:
                lines[at] = "  " * chance.randint(0, 3) + line.strip()
            case 3 | 4 | 5:
                lines[at] = f"{key}: {chosen(values, chance)}"
            case 6:
                lines.insert(at, f"{chance.choice(values)}: {chance.choice(values)}")
            case 7:
                cut = chance.randint(0, len(line))
                lines[at] = (
                    line[:cut] + chance.choice("\t:{}[],&*#?|-<>=!%@`'\"\\~$\x07é") + line[cut:]
                )
            case _:
                lines[at] = line[: chance.randint(0, len(line))]
    return "\n".join(lines)


def changed_override(values: list[str], chance: random.Random) -> str:
    key = chance.choice(KEYS)
    match chance.randrange(16):
        case 0:
            key = key.rpartition(".")[0] or key
        case 1:
            key += chance.choice([".", ".0", "[0]", ".x", " ", "\x00"])
        case 2:
            at = chance.randrange(len(key))
            key = key[:at] + chance.choice("._ =$~x\n") + key[at + 1 :]
    return key + chance.choice(["=", "=", "=", "=", " = ", ""]) + chosen(values, chance)


def outcome(path: Path, overrides: list[str], folder: Path) -> str:
    """`taken` or `refused`, after a look at either."""
    started = time.process_time()
    try:
        runs = load_runs(path, overrides)
    except ConfigError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 4000, text
        assert str(path) in text or "override " in text, text
        return "refused"
    finally:
        assert time.process_time() - started < MOST_SECONDS, (path.read_bytes(), overrides)
    saved = folder / "saved.yaml"
    saved.write_text(written(runs))
    again = load_runs(saved)
    assert again == runs and written(again) == saved.read_text()
    if None in runs:
        assert validate(read_yaml(saved), str(saved)) == runs[None]
    return "taken"


def written(runs: Runs) -> str:
    return to_yaml(runs[None] if None in runs else as_file({str(n): c for n, c in runs.items()}))


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NVLM_UNSET", raising=False)
    return VALUES + hostile(tmp_path)


def test_changed_files(tmp_path: Path, values: list[str]):
    chance = random.Random(0)
    outcomes = Counter()
    path = tmp_path / "run.yaml"
    saved = {original: written(load_runs(original)) for original in RUNS}
    for number in range(120):
        original = chance.choice(RUNS)
        if number % 2:
            text = saved[original]
        else:
            text = original.read_text().replace("../..", str(REPOSITORY / "configs"))
            text = text.replace("    base: ", f"    base: {original.parent}/")  # of stages
        data = changed_text(text, values, chance).encode("utf-8", "surrogateescape")
        if number % 15 == 0:
            data = data[: chance.randrange(len(data))] + bytes(chance.choices(range(256), k=3))
        path.write_bytes(data)
        outcomes[outcome(path, [], tmp_path)] += 1
    assert min(outcomes["taken"], outcomes["refused"]) > 10, outcomes
    assert not (tmp_path / "executed").exists()


def test_changed_overrides(tmp_path: Path, values: list[str]):
    chance = random.Random(1)
    outcomes = Counter()
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(load_config(REPOSITORY / "configs" / "run" / "tiny" / "sft.yaml")))
    for _ in range(160):
        overrides = [changed_override(values, chance) for _ in range(chance.randint(1, 2))]
        outcomes[outcome(path, overrides, tmp_path)] += 1
    assert min(outcomes["taken"], outcomes["refused"]) > 10, outcomes
    assert not (tmp_path / "executed").exists()
