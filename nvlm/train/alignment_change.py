"""Whether levels of alignment (`stage.alignment`) go on from a checkpoint."""

from __future__ import annotations

from nvlm.config.schema import RunConfig
from nvlm.sizes.alignment import GATE, LEVELS_KEY

# Of keys that a checkpoint may have none of; they then begin anew.
ALIGNMENT_PATTERNS = (LEVELS_KEY, f"{GATE}*")


def resumed_otherwise(config: RunConfig, saved: RunConfig) -> str | None:
    """Why a run of other levels is not this one."""
    ours, theirs = _said(config), _said(saved)
    if ours == theirs:
        return None
    return f"was trained with {theirs}, this run says {ours}: use another run.dir"


def started_otherwise(config: RunConfig, saved: RunConfig) -> str | None:
    """Why this run cannot begin with the levels that were learned up to here.

    A gate begins where there was none, and so do levels.
    """
    ours, theirs = config.stage.alignment, saved.stage.alignment
    if theirs is None:
        return None
    loses_gate = saved.stage.mixes_levels and not config.stage.mixes_levels
    if ours is not None and ours.num_levels == theirs.num_levels and not loses_gate:
        return None
    return (
        f"has learned {_said(saved)}, and this run says {_said(config)}: what was learned would be "
        "lost; give the same, or start from a checkpoint before them"
    )


def _said(config: RunConfig) -> str:
    alignment = config.stage.alignment
    if alignment is None:
        return "stage.alignment null"
    return (
        f"stage.alignment of {alignment.num_levels} levels (num_levels) from "
        f"{alignment.levels_from} (levels_from)"
    )
