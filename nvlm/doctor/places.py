"""The places of a run: its folders, its data, what it starts from; nothing is made or changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from nvlm.config import RunConfig
from nvlm.doctor.finding import Finding
from nvlm.doctor.machine import size_in_words
from nvlm.errors import NvlmError
from nvlm.plan.stage_bytes import checkpoint_bytes
from nvlm.train.checkpoint import find_initial_weights, find_resume_point
from nvlm.train.preflight import check_before_start

# One is written beside while all that are kept are there.
_LEAST_CHECKPOINTS = 2


def look_at_places(config: RunConfig) -> list[Finding]:
    """What would end a run at its start, or at its first checkpoint."""
    run = Path(config.run.dir)
    return [
        _look("run.dir", lambda: _run_folder(config)),
        _disk(config, run),
        _look("data", lambda: _shards(config)),
        _look("starts from", lambda: _start(config)),
        _look("tokenizer", lambda: _tokenizer(config)),
    ]


def _look(what: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(what, look())
    except NvlmError as error:
        return Finding(what, "not as a run needs it", wrong=str(error))


def _run_folder(config: RunConfig) -> str:
    check_before_start(config)
    return f"{config.run.dir} can be written"


def _disk(config: RunConfig, folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free, needed = shutil.disk_usage(there).free, checkpoint_bytes(config).total
    found = (
        f"{size_in_words(free)} free at {there}: {free // needed:,} checkpoints of "
        f"{size_in_words(needed)}"
    )
    wrong = ""
    if free < _LEAST_CHECKPOINTS * needed:
        wrong = (
            f"{_LEAST_CHECKPOINTS} have to fit, as one is written while the one before is kept: "
            "free some space, or give another run.dir"
        )
    return Finding("disk of run.dir", found, wrong=wrong)


def _shards(config: RunConfig) -> str:
    from nvlm.data.shards.sources import find_sources

    sources = find_sources(config)
    num_shards = sum(len(source.shards) for source in sources.values())
    return f"{config.data.root}: {len(sources)} sources of {num_shards:,} shards"


def _start(config: RunConfig) -> str:
    resumed = find_resume_point(config)
    if resumed.checkpoint:
        return f"{resumed.checkpoint}, where the run stopped"
    weights = find_initial_weights(config)
    return f"the weights of {weights}" if weights else "random weights"


def _tokenizer(config: RunConfig) -> str:
    from nvlm.data.text.chat import load_chat_tokenizer

    name, image_token = config.model.tokenizer, config.model.image_token
    chat = load_chat_tokenizer(name, image_token)
    return f"{name} is read, has {image_token}, and writes conversations as {chat.format.name}"
