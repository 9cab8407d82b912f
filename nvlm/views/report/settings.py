"""Settings that differ: between runs, and between a run's earlier and later course."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nvlm.views.report.run_record import RunRecord

ABSENT = "–"
# Where a run lies says nothing about how it was trained.
_PLACES = ("run.dir", "data.index_dir")


def differences(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """(key, its value in each of `settings`) where these are not all the same."""
    flat = [_flatten(some) for some in settings]
    keys = sorted({key for some in flat for key in some} - set(_PLACES))
    rows = [(key, [some.get(key, ABSENT) for some in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def changes_of_run(run: RunRecord) -> list[tuple[str, list[str]]]:
    """Settings that changed on a resume: (key, its value in each file, the present one last)."""
    return differences([*(earlier for _, earlier in run.earlier_settings), run.config])


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            found |= _flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = "null" if value is None else str(value)
    return found
