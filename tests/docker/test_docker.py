"""The images' files, read: what they copy is there, what they run parses, the tests are run.

No image is built here. That needs Docker, and NVIDIA's base image of 20 GB.
"""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass, field

import pytest
from helpers.paths import REPOSITORY

FILES = ["docker/Dockerfile", "docker/Dockerfile.cpu"]


@dataclass
class Stage:
    """One `FROM` of a Dockerfile: what it starts from, and its instructions in order."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.instructions if word == instruction]


def stages_of(file: str) -> list[Stage]:
    lines = [
        line
        for line in (REPOSITORY / file).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    stages: list[Stage] = []
    for instruction in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, rest = instruction.split(maxsplit=1)
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append((word, rest))
        else:
            assert word == "ARG", "only arguments stand before the first FROM"
    return stages


def programs(command: str) -> list[str]:
    """What a shell command hands to `python -c`."""
    return re.findall(r"python -c '([^']*)'", command)


@pytest.mark.parametrize("file", FILES)
def test_what_is_copied_is_there_and_what_is_run_parses(file):
    for stage in stages_of(file):
        for copied in stage.arguments("COPY"):
            *sources, _ = copied.split()
            if not sources[0].startswith("--from="):
                assert all((REPOSITORY / source).exists() for source in sources), copied
        for command in stage.arguments("RUN"):
            subprocess.run(["bash", "-n", "-c", command], check=True)
            for program in programs(command):
                ast.parse(program)
            for script in re.findall(r"(?:docker|scripts)/\w+(?:\.py)?", command):
                assert (REPOSITORY / script).is_file(), script


def test_image_for_gpus_imports_what_it_brings():
    first, *_ = stages_of("docker/Dockerfile")
    imported = {
        alias.name
        for command in first.arguments("RUN")
        for program in programs(command)
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported >= {"apex", "megatron.core", "transformer_engine.pytorch"}


def test_image_for_gpus_is_built_only_where_the_tests_pass():
    """Unused stages are not built; the last one takes a file that the tests wrote."""
    nvlm, tests, last = stages_of("docker/Dockerfile")
    assert (nvlm.name, tests.base, last.base) == ("nvlm", "nvlm", "nvlm")
    runs = tests.arguments("RUN")[-1]
    written = re.search(r"\| tee (\S+) ", runs)
    assert written and last.arguments("COPY") == [f"--from=tests /opt/nvlm/{written[1]} ."]
    # A failing pytest in front of a pipe ends the build.
    assert tests.arguments("SHELL") == ['["/bin/bash", "-o", "pipefail", "-c"]']
    selected = re.findall(r"pytest [^|]*? -m (\w+|\"[^\"]+\") ", runs)
    assert selected == ['"not parallel"', "parallel"]
    (options,) = tests.arguments("ARG")
    ignored = re.findall(r"--ignore ([\w/.]+)", options)
    assert ignored and all((REPOSITORY / path).exists() for path in ignored)
