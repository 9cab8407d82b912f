"""Print what pip must install on an image that brings its own torch.

    python docker/image_requirements.py requirements      # pyproject.toml's, without torch
    python docker/image_requirements.py requirements dev  # and those of its extra `dev`
    python docker/image_requirements.py constraints       # of constraints.txt and the image

The image's builds of torch and of what is compiled against it stay as they are: each is pinned to
the version that is installed.
"""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Names of distributions that the image builds for its torch and its CUDA.
IMAGE_BUILDS = re.compile(r"torch.*|pytorch-triton|triton|transformer-engine.*|apex|flash-attn.*")


def main() -> None:
    what, *extras = sys.argv[1:] or ["nothing"]
    builds = image_builds()
    if what == "requirements":
        lines = [line for line in requirements(extras) if name_of(line) not in builds]
    elif what == "constraints" and not extras:
        tested = (REPOSITORY / "constraints.txt").read_text().splitlines()
        lines = [line for line in tested if "==" in line and name_of(line) not in builds]
        lines += [f"{name}=={version}" for name, version in sorted(builds.items())]
    else:
        sys.exit(__doc__)
    print("\n".join(lines))


def image_builds() -> dict[str, str]:
    """Name -> version of what is installed and compiled for the image."""
    builds = {}
    for found in distributions():
        # An interrupted installation leaves a folder without its METADATA, which has no name.
        name, version = (found.metadata.get(key) for key in ("Name", "Version"))
        if name and version and IMAGE_BUILDS.fullmatch(normalise(name)):
            builds[normalise(name)] = version
    return builds


def requirements(extras: list[str]) -> list[str]:
    """What nvlm asks for, and what its `extras` do."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *of_extras(extras, optional)]


def of_extras(extras: list[str], optional: dict[str, list[str]]) -> Iterator[str]:
    """An extra may name others: `nvlm[demo]`."""
    for line in itertools.chain.from_iterable(optional[extra] for extra in extras):
        own = re.fullmatch(r"nvlm\[(.+)\]", line)
        if own:
            yield from of_extras(own.group(1).split(","), optional)
        else:
            yield line


def name_of(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    return normalise(found.group()) if found else ""


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
