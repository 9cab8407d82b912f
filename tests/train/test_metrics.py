"""Records of steps that run again after a kill are written once."""

from __future__ import annotations

import json

from rich.console import Console

from nvlm.batch import SkippedSample
from nvlm.config import load_config
from nvlm.train.metrics import MetricsWriter

RECORD = {
    "loss": 1.0,
    "grad_norm": 2.0,
    "lr": 1e-3,
    "tokens": 10,
    "tiles": 3,
    "padding": 0.1,
    "tokens_per_second": 5.0,
    "seconds": 2.0,
    "data_seconds": 0.1,
}


def test_resume_drops_later_and_cut_records(tmp_path):
    overrides = [f"run.dir={tmp_path}", "log.tensorboard=false"]
    config = load_config("configs/run/tiny/sft.yaml", overrides)
    console = Console(quiet=True)
    bad = SkippedSample("digits", "digits-000000.tar", "7", "image", "truncated")
    writer = MetricsWriter(config, 0, console)
    for step in (1, 2, 3):
        writer.write(step, RECORD, [bad] if step == 3 else [])
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed here

    writer = MetricsWriter(config, 2, console)
    writer.write(3, RECORD, [bad])
    writer.close()
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == [1, 2, 3]
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [
        {
            "step": 3,
            "source": "digits",
            "shard": "digits-000000.tar",
            "key": "7",
            "reason": "image",
            "detail": "truncated",
        }
    ]
