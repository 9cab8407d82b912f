"""A failure on one rank ends the job, and explains itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import failing_ranks, spawn

PLACES = {
    "forward": "in step 2 on rank 2 (tensor rank 0, pipeline stage 1, data rank 0); its samples: ",
    "reader": "while rank 1 (tensor rank 0, pipeline stage 0, data rank 1) read the samples of ",
    "optimizer": "in step 2 on rank 3 (tensor rank 0, pipeline stage 1, data rank 1); its ",
}


@pytest.mark.parallel
def test_one_of_four_ranks_fails(demo_data: Path, tmp_path: Path, fault):
    command = [sys.executable, failing_ranks.__file__, str(tmp_path), "train"]
    command += ["configs/run/tiny/sft.yaml", f"data.root={demo_data}"]
    command += ["data.blend={digits: 1}", f"data.index_dir={tmp_path / 'index'}"]
    command += ["data.num_workers=1", "checkpoint.load=random", "train.steps=4"]
    command += ["train.global_batch_size=2", "parallel.pipeline=2", "log.tensorboard=false"]
    command += ["model.vision.num_layers=1", "model.language.num_layers=2"]
    with (tmp_path / "out").open("wb") as out:
        job = subprocess.Popen(
            command,
            cwd=spawn.REPOSITORY,
            env=spawn.environment(),
            stdout=out,
            start_new_session=True,
        )
        try:
            assert job.wait(200) == 0
        finally:
            spawn.kill(job)
    outcomes = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [where for where, *_ in outcomes] == list(failing_ranks.FAILURES)
    for where, codes, seconds in outcomes:
        printed = (tmp_path / f"{where}.log").read_text()
        rank, _, _, error = failing_ranks.FAILURES[where]
        assert seconds < 30, printed
        assert all(codes), (codes, printed)
        if error is None:  # which is left to its launcher to say; that it is gone is said once
            assert codes[rank] == -signal.SIGKILL
            assert printed.count("error: the connection to another process of the run is ") == 1
            continue
        # Once: the others say nothing of connections that they lost.
        assert printed.count("error: ") == 1 + (where == "forward"), printed
        assert PLACES[where] in printed
        assert "digits/train-digits-" in printed
        assert f"[rank {rank}]" in printed
        assert str(error.args[-1]) in printed
        assert ("Traceback" in printed) == (where == "forward")
        assert not (tmp_path / where / ".owners").exists()
        records = [json.loads(path.read_text()) for path in tmp_path.glob(f"{where}.log.*.json")]
        first = min(records, key=lambda record: int(record["message"]["extraInfo"]["timestamp"]))
        assert PLACES[where] in first["message"]["message"]
    said = "all ranks end within 30 s; one line names rank, step and samples"
    for what, outcome in {
        "a rank's device fails in the forward pass": said,
        "a rank cannot read a shard any more (ESTALE)": said,
        "a rank's device is out of memory in the optimizer": said,
        "a rank is killed (SIGKILL), its launcher ends nobody": "all ranks end within 30 s; one "
        "line says that a connection is lost",
    }.items():
        fault(what=what, layout="PP2 x DP2", outcome=outcome)
