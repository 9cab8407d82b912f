"""What a run says about its pipeline stages before the first step."""

from __future__ import annotations

import io

from helpers import small_model
from rich.console import Console

from nvlm.config import load_config
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.hardware import CARDS
from nvlm.plan.layout import stage_seconds, with_stage_layers
from nvlm.plan.stage_bytes import stage_bytes
from nvlm.plan.work import largest_work
from nvlm.sizes.layout import stage_layers
from nvlm.train.stage_table import print_stage_table


def printed(config) -> str:
    file = io.StringIO()
    print_stage_table(config, 4, Console(file=file, width=120))
    return file.getvalue()


def test_layers_time_and_memory_of_each_stage():
    config = load_config("nvlm_d_72b/sft", ["model.layer_implementation=local"])
    config = with_stage_layers(config)
    text, layers = printed(config), stage_layers(config)
    seconds = stage_seconds(config, layers)
    rows = [line.split() for line in text.splitlines() if line[:2] in ("0:", "1:", "2:", "3:")]
    assert len(rows) == 4
    assumptions = assumptions_for(CARDS["h100-80gb"])
    for stage, row in enumerate(rows):
        held = stage_bytes(config, stage, 4, largest_work(config), assumptions)
        assert row[:2] == [f"{stage}:", str(layers[stage][0])]
        assert float(row[2]) == float(f"{1e3 * seconds[stage]:.3g}")
        assert float(row[3]) == round(100 * seconds[stage] / max(seconds))
        assert [float(n) for n in row[5:]] == [
            round(n / 1e9, 2) for n in (held.kept, held.coming, held.peak)
        ]
    assert f"parallel.layout {config.parallel.layout}" in text
    assert "with 7 tiles a micro-batch" in text


def test_chunks_and_an_encoder_that_trains():
    config = small_model.small_config(
        "model.language.num_layers=4",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "parallel.layout=[[0, 1], [2, 1]]",
        "stage.freeze=[]",
    )
    text = printed(config)
    assert "0: 0 + 1 " in text and "1: 2 + 1 " in text


def test_one_stage_has_no_table():
    assert printed(small_model.small_config()) == ""
