"""Each warning that is ignored is still given."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from helpers import spawn

from nvlm.megatron.known_warnings import KNOWN_WARNINGS

# A step, its checkpoint and a resumed optimizer, then a layer that is split over two processes.
PROGRAM = """
import json, sys, warnings
from pathlib import Path

from helpers import small_model
from helpers.optimizer_parts import read, sharded_state, take_step, with_optimizer, written
from nvlm.parallel.groups import initialize, shut_down
from nvlm.parallel.stand_in import stand_in


def train(folder):
    config = small_model.small_config(
        "stage.freeze=[]", "train.recompute.language.granularity=selective"
    )
    parallel = initialize(config, world_size=1)
    model, optimizer = with_optimizer(config, parallel)
    take_step(model, optimizer)
    written(folder, sharded_state(model, optimizer))
    read(folder, sharded_state(model, optimizer, is_loading=True))
    shut_down()


def run_a_split_layer():
    config = small_model.small_config("parallel.tensor=2")
    with stand_in(config, pipeline_rank=0) as parallel:
        model = small_model.build(config, parallel)
        model(small_model.batch(config, 1, [40, 40], num_tiles=0))


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(Path(sys.argv[1]))
        run_a_split_layer()
    print(json.dumps([str(warning.message) for warning in seen]))
"""


@pytest.fixture(scope="module")
def given(plain_import, tmp_path_factory) -> list[str]:
    """All warnings of importing Megatron-core and of using it as a run does."""
    folder = tmp_path_factory.mktemp("warnings")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, folder / "checkpoint"],
        env=spawn.environment(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=300,
    )
    return [*plain_import.warnings, *json.loads(done.stdout.splitlines()[-1])]


@pytest.mark.parametrize("message", KNOWN_WARNINGS)
def test_warning_is_still_given(message: str, given):
    assert any(re.match(message, warning) for warning in given)
