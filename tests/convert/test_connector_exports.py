"""Exports with each kind of connector: transformers computes with them what Megatron-core does."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import export_runs, small_folders
from helpers.connectors import CONNECTORS, TOKENS
from helpers.export_logits import export_logits

from nvlm.convert import convert_from_nvlm
from nvlm.convert.export.config import model_config, serving_differences
from nvlm.convert.export_config import config_of_export
from nvlm.convert.hf.architectures import released_problems
from nvlm.convert.hf.folder import HfFolder
from nvlm.convert.verify import verify

# In the ordinary suite, one stands for all.
CASES = [
    name if name == "attention_pooling" else pytest.param(name, marks=pytest.mark.slow)
    for name in CONNECTORS
]


@pytest.mark.parametrize("name", CASES)
def test_transformers_computes_the_same(name, tmp_path, tmp_path_factory, monkeypatch, measure):
    converted = export_runs.make_export(tmp_path, CONNECTORS[name])
    values = json.loads((converted.export / "config.json").read_text())
    assert values.get("connector", {}).get("num_tokens", TOKENS[name]) == TOKENS[name]
    modules = tmp_path_factory.getbasetemp() / "modules"
    logits = export_logits(converted, monkeypatch, modules)
    assert torch.equal(logits.read_back, logits.checkpoint)
    # Measured: at most 2e-6 where logits reach 3.
    what = f"logits of the export, largest difference, connector {name}"
    measure(what, "our Megatron model", logits.largest_difference, 1e-4)
    assert logits.answers == logits.transformers_answers

    connector = converted.config.model.connector
    assert config_of_export(HfFolder(converted.export)).model.connector == connector
    again = convert_from_nvlm(converted.export, converted.config, tmp_path / "again")
    assert verify(converted.checkpoint, again).differences == []


@pytest.mark.parametrize("name", CONNECTORS)
def test_what_vllm_cannot_load_is_said(name):
    config = small_folders.convert_config(*export_runs.SERVED, "stage.tile_tags=1d")
    assert serving_differences(config) == []
    config = small_folders.convert_config(
        *export_runs.SERVED, *CONNECTORS[name], "stage.max_num_tiles=2"
    )
    kind = config.model.connector.kind
    assert any(
        f"vLLM cannot load it: the connector is of kind {kind}" in text
        for text in serving_differences(config)
    )


def test_another_connector_is_refused():
    ours = small_folders.convert_config(*CONNECTORS["attention_pooling"])
    theirs = small_folders.convert_config(*CONNECTORS["average_pooling"])
    released = small_folders.convert_config()
    values = [model_config(config, "float32", 1, 2, 3) for config in (ours, theirs, released)]
    assert released_problems(values[0], ours.model) == []
    for other in values[1:]:
        (problem,) = released_problems(other, ours.model)
        assert problem.startswith("connector is ")
        assert "'num_queries': 10" in problem
    found = released_problems(values[0], released.model)
    assert found[0].startswith("connector is {'kind': 'attention_pooling'")
    assert found[0].endswith("expected None")
