"""Print what pip must install on an image that brings its own torch.

    python docker/image_requirements.py requirements    # pyproject.toml's, without torch
    python docker/image_requirements.py constraints     # constraints.txt's, with the image's builds

The image's builds of torch and of what is compiled against it stay as they are: each is pinned to
the version that is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Names of distributions that the image builds for its torch and its CUDA.
IMAGE_BUILDS = re.compile(r"torch.*|pytorch-triton|triton|transformer-engine.*|apex|flash-attn.*")


def main() -> None:
    installed = {
        normalise(found.metadata["Name"]): found.version
        for found in distributions()
        if IMAGE_BUILDS.fullmatch(normalise(found.metadata["Name"]))
    }
    if sys.argv[1:] == ["requirements"]:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        lines = [line for line in project["dependencies"] if name_of(line) not in installed]
    elif sys.argv[1:] == ["constraints"]:
        tested = (REPOSITORY / "constraints.txt").read_text().splitlines()
        lines = [line for line in tested if "==" in line and name_of(line) not in installed]
        lines += [f"{name}=={version}" for name, version in sorted(installed.items())]
    else:
        sys.exit(__doc__)
    print("\n".join(lines))


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normalise(found.group()) if found else ""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
