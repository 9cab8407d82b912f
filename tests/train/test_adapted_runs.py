"""Runs with adapters: where they begin, what trains, and what a checkpoint of them is good for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import small_model, spawn
from helpers.adapter_steps import DORA, LORA
from helpers.paths import REPOSITORY
from helpers.small_runs import STEPS, settings_of, stage_config

from nvlm.config import load_runs
from nvlm.errors import CheckpointError, ConfigError
from nvlm.model.parts.names import is_frozen, named_parameters
from nvlm.train.freezing import freeze, module_table, multipliers
from nvlm.train.patterns import check_patterns

DECODER = "stage.adapters={'language_model.*.linear_*.weight': {rank: 4}}"
OTHER = "stage.adapters={'language_model.*.linear_qkv.weight': {rank: 4}}"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("adapters", [LORA, DORA], ids=["LoRA", "DoRA"])
def test_the_first_loss_is_that_of_the_model_itself(parallel, adapters: str, precision: str):
    from nvlm.model.nvlm_d import build_model
    from nvlm.model.parts.initialize import initialize_weights

    losses = {}
    for name, own in {"with": [adapters], "without": []}.items():
        config = small_model.small_config(
            "model.language.num_layers=4", f"train.precision={precision}", *own
        )
        model = build_model(config, parallel)
        initialize_weights(model, config)
        losses[name] = model(small_model.batch(config, 1, [60, 20], num_tiles=2))
    assert torch.equal(losses["with"], losses["without"])
    assert losses["with"].requires_grad


def test_a_part_with_adapters_trains_nothing_else(parallel):
    config = small_model.small_config(DECODER, "stage.freeze=[vision_model.*]")
    chunks = small_model.build_chunks(config, parallel)
    freeze(chunks, config, parallel)
    trained = {name for name, parameter in named_parameters(chunks) if parameter.requires_grad}
    assert trained == {
        name
        for name, _ in named_parameters(chunks)
        if ".adapter." in name or name.startswith("vision_projection.")
    }
    assert is_frozen(chunks[0].vision_model), "it keeps no activations"
    rows = module_table(chunks, multipliers(chunks, config, parallel), parallel)
    found = {row.name: (row.num_parameters, row.num_trainable) for row in rows}
    # Per layer: A of (3 + 1 + 2 + 1) parts, B of (384 + 192 + 1024 + 192) rows, rank 4.
    num_adapted = 2 * 4 * (6 * 192 + 512 + 1792)
    assert found["language_model adapters"] == (num_adapted, num_adapted)
    assert found["language_model.decoder"][1] == 0


def test_adapters_of_the_encoder_train_it_whatever_freeze_says(parallel):
    config = small_model.small_config(
        LORA, "stage.freeze=[vision_*]", "model.language.num_layers=4"
    )
    chunks = small_model.build_chunks(config, parallel)
    freeze(chunks, config, parallel)
    model = chunks[0]
    assert not is_frozen(model.vision_model)
    model(small_model.batch(config, 1, [60, 20], num_tiles=2)).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("adapters", "message"),
    {
        "{'language_model.*.linear_q': {rank: 2}}": "'language_model.*.linear_q' matches no matrix",
        "{'*.norm.weight': {rank: 2}}": "there are vision_model.*.linear_qkv.weight, ",
        "{'*.embedding.*': {rank: 2}}": "matches no matrix of a linear layer",
        "{'*linear_*': {rank: 2}, '*.linear_fc2.*': {rank: 2}}": (
            "'*linear_*' and '*.linear_fc2.*' both match vision_model.decoder.layers.0.mlp.linear_"
        ),
        "{'vision_model.*linear_*': {rank: 2, dora: true}}": "are zero and have no direction",
    }.items(),
)
def test_adapters_that_cannot_be_are_refused(adapters: str, message: str):
    with pytest.raises(ConfigError) as refused:
        check_patterns(small_model.small_config(f"stage.adapters={adapters}"))
    assert message in str(refused.value.args)


def test_experts_have_no_adapters():
    experts = "model.language.moe={num_experts: 4, every_nth_layer: 2}"
    for pattern in ("language_model.*.linear_*.weight", "*.local_experts.3.linear_fc2.weight"):
        adapters = f"stage.adapters={{'{pattern}': {{rank: 2}}}}"
        with pytest.raises(ConfigError, match="experts have no adapters, as peft could not save"):
            check_patterns(small_model.small_config(experts, adapters))
    attention, mlp = "'*.self_attention.linear_*.weight'", "'*.mlp.linear_*'"
    both = f"stage.adapters={{{attention}: {{rank: 2}}, {mlp}: {{rank: 3}}}}"
    check_patterns(small_model.small_config(experts, both))


def test_an_encoder_with_adapters_is_not_shared_out():
    with pytest.raises(ConfigError, match=r"or stage\.adapters let it train"):
        small_model.small_config(
            "stage.adapters={'*linear_proj.weight': {rank: 2}}",
            "stage.freeze=[vision_model.*]",
            "parallel.vision=tile_parallel",
        )
    config = small_model.small_config(
        DECODER, "stage.freeze=[vision_model.*]", "parallel.vision=tile_parallel"
    )
    check_patterns(config)


def test_a_stage_after_one_with_adapters_has_the_same(tmp_path: Path, demo_data: Path):
    path = REPOSITORY / "configs/run/tiny/stages.yaml"
    settings = [*settings_of(demo_data, tmp_path), f"run.dir={tmp_path}"]
    load_runs(path, [*settings, f"stages.sft.{DECODER}"])
    with pytest.raises(ConfigError, match=r"stage\.adapters are not those of stages\.pretrain"):
        load_runs(path, [*settings, f"stages.pretrain.{DECODER}"])


@pytest.fixture(scope="module")
def trained(demo_data: Path, tmp_path_factory) -> Path:
    """A folder with a run of the whole model, and one with adapters that starts from it."""
    from nvlm.train.fit import train

    folder = tmp_path_factory.mktemp("runs")
    train(stage_config("pretrain", demo_data, folder, "random"))
    train(stage_config("sft", demo_data, folder, str(folder / "pretrain"), DECODER))
    return folder


@pytest.mark.slow
def test_a_run_resumes_to_the_same_losses(trained: Path, demo_data: Path):
    from nvlm.train.fit import train

    load = str(trained / "pretrain")
    more = f"train.steps={STEPS + 1}", "train.schedule.decay_steps=99"
    again = trained / "again"
    train(stage_config("sft", demo_data, again, load, DECODER, *more[1:]))
    train(stage_config("sft", demo_data, again, load, DECODER, *more))
    whole = trained / "whole"
    train(stage_config("sft", demo_data, whole, load, DECODER, *more))
    expected = [record["loss"] for record in spawn.metrics(whole / "sft")]
    assert [record["loss"] for record in spawn.metrics(again / "sft")] == expected


def test_checkpoints_of_other_adapters_are_refused(trained: Path, demo_data: Path):
    from nvlm.convert.adapters.merge import merge_adapters
    from nvlm.train.fit import train

    load = str(trained / "pretrain")
    with pytest.raises(CheckpointError, match=r"trained with other stage\.adapters"):
        train(stage_config("sft", demo_data, trained, load, OTHER))
    for name, other in {"other": OTHER, "none": "stage.adapters={}"}.items():
        with pytest.raises(CheckpointError, match="nvlm convert merge"):
            train(stage_config("sft", demo_data, trained / name, str(trained / "sft"), other))
    # With the same ones a run goes on from them, and without from the merged ones.
    train(stage_config("sft", demo_data, trained / "next", str(trained / "sft"), DECODER))
    merged = str(merge_adapters(trained / "sft", trained / "merged"))
    train(stage_config("sft", demo_data, trained / "after", merged, OTHER))
    first = [spawn.metrics(trained / run / "sft")[0]["loss"] for run in ("next", "after")]
    assert first[0] == pytest.approx(first[1], rel=1e-6)
