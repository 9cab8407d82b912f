"""The configurations that come with nvlm, by name: `MODEL/STAGE` is `configs/run/MODEL/STAGE.yaml`.

`nvlm/configs` is a link to `configs` in a clone; a wheel carries the files there.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from nvlm.errors import ConfigError

# Where they are: the link followed, so that messages name what a user of a clone sees.
RUNS = (Path(__file__).resolve().parents[1] / "configs" / "run").resolve()


def run_names() -> list[str]:
    """Names of all runs that come with nvlm, sorted."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in RUNS.glob("*/*.yaml"))


def find_run(given: str) -> Path:
    """The file that a CONFIG of the command line means: an existing file, or else a name's.

    Where neither is there, `given` is returned as a path, for its reader to say so.

    Raises:
        ConfigError: there is no such file, but names are near.
    """
    if os.path.isfile(given):
        return Path(given)
    if given in run_names():
        return _beside_user(RUNS / f"{given}.yaml")
    if not os.path.lexists(given) and (near := near_names(given)):
        raise ConfigError(f"{given}: no such configuration file; did you mean {near}?")
    return Path(given)


def near_names(given: str) -> str:
    """Names that are written about like `given`, the nearest first; empty where there are none."""
    stem = given.removesuffix(".yaml").removesuffix(".yml")
    wanted = "/".join(stem.split("/")[-2:])[:100]
    return ", ".join(difflib.get_close_matches(wanted, run_names(), cutoff=0.65))


def _beside_user(path: Path) -> Path:
    """As a user in the clone writes it: runs by name and by path are then the same."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
