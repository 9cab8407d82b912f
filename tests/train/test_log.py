"""Records of steps that run again after a kill are written once."""

from __future__ import annotations

import json

from rich.console import Console

from nvlm.batch import SkippedSample
from nvlm.config import load_config
from nvlm.train.log import RunLog

RECORD = {
    "loss": 1.0,
    "grad_norm": 2.0,
    "lr": 1e-3,
    "tokens": 10,
    "tiles": 3,
    "padding": 0.1,
    "tokens_per_second": 5.0,
    "tflops_per_second": 1.0,
    "rank_imbalance": 1.0,
    "seconds": 2.0,
    "data_seconds": 0.1,
}


def test_resume_drops_later_and_cut_records(tmp_path):
    overrides = [f"run.dir={tmp_path}", "log.tensorboard=false"]
    config = load_config("configs/run/tiny/sft.yaml", overrides)
    console = Console(quiet=True)
    bad = SkippedSample("digits", "digits-000000.tar", "7", "image", "truncated")
    log = RunLog(config, 0, console)
    for step in (1, 2, 3):
        log.write(step, RECORD)
        log.name_skipped(step, [bad] if step == 3 else [])
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process was killed here

    log = RunLog(config, 2, console)
    log.write(3, RECORD)
    log.name_skipped(3, [bad])
    log.close()
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


def test_each_skipped_sample_is_named_once(tmp_path, capsys):
    overrides = [f"run.dir={tmp_path}", "log.tensorboard=false"]
    config = load_config("configs/run/tiny/sft.yaml", overrides)
    bad = [SkippedSample("digits", "a.tar", str(n), "image", "truncated") for n in range(15)]
    log = RunLog(config, 0, Console())
    log.name_skipped(1, bad)
    log.name_skipped(2, bad)
    log.close()
    assert capsys.readouterr().out.count("of a.tar:") == 10
    # Also not by the process that resumes.
    log = RunLog(config, 2, Console())
    log.name_skipped(3, [*bad, SkippedSample("digits", "a.tar", "1", "json", "x")])
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["key"]) for line in lines[:15]] == [(1, str(n)) for n in range(15)]
    assert [(line["step"], line["reason"]) for line in lines[15:]] == [(3, "json")]
