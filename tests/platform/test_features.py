"""Which kernels and settings a run uses: decided from what was found, needs no GPU."""

from __future__ import annotations

import pytest
from helpers import small_model

from nvlm.errors import ConfigError
from nvlm.platform.features import RULES, Situation, check_context, check_fp8, decide, is_on
from nvlm.platform.machine import Machine, numbers

H100 = Machine("H100", (9, 0), {"transformer_engine": "2.10.0"}, cudnn=(9, 15, 0))
CPU = Machine("CPU (1 thread)")


@pytest.mark.parametrize("machine", [H100, CPU], ids=lambda machine: machine.device)
def test_every_feature_is_a_line_and_off_has_a_reason(machine):
    config = small_model.small_config()
    lines = decide(config, machine, "local")
    for feature in lines:
        assert feature.value != "off" or feature.reason, feature
    for name in RULES:
        assert is_on(name, config, machine, "local") == (
            not RULES[name](Situation(config, machine, "local"))
        )
    names = [feature.name for feature in lines]
    assert {name.replace("_", " ") for name in RULES} <= set(names)


def test_versions_are_compared_as_numbers():
    assert numbers("2.10.0+769ed778") == (2, 10, 0)
    assert numbers("2.7.4.post1") == (2, 7, 4)
    assert H100.has("transformer_engine", 2, 9) and not H100.has("transformer_engine", 2, 11)
    assert not CPU.has("transformer_engine")


H100_WITH_ALL = Machine(
    "H100",
    (9, 0),
    {
        "transformer_engine": "2.10.0",
        "apex": "0.1",
        "fused_weight_gradient_mlp_cuda": "0.1",
        "triton": "3.5.0",
    },
    cudnn=(9, 15, 0),
    c_compiler="/usr/bin/gcc",
)
H100_BARE = Machine("H100", (9, 0))
# Feature -> whether it is on: on a GPU with everything, on one with nothing, and on a CPU.
EXPECTED = {
    "compiled_norms_and_swiglu": (True, False, False),
    "fused_cross_entropy": (True, False, False),
    "fused_rotation": (True, False, False),
    "fused_gradient_accumulation": (True, False, False),
    "overlapped_data_parallelism": (True, True, False),
    "tensor_parallel_overlap": (False, False, False),
    "encoder_cuda_graphs": (False, False, False),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_fusions_and_overlaps(name: str):
    config = small_model.small_config("train.precision=bf16")
    found = (
        is_on(name, config, H100_WITH_ALL, "transformer_engine"),
        is_on(name, config, H100_BARE, "local"),
        is_on(name, config, CPU, "local"),
    )
    assert found == EXPECTED[name]


def test_what_is_missing_is_named():
    config = small_model.small_config("train.precision=bf16")
    lines = {feature.name: feature.reason for feature in decide(config, H100_BARE, "local")}
    assert "Triton and a C compiler" in lines["compiled norms and swiglu"]
    assert "Apex" in lines["fused gradient accumulation"]
    in_fp32 = small_model.small_config("train.precision=fp32")
    assert not is_on("fused_cross_entropy", in_fp32, H100_WITH_ALL, "transformer_engine")


def reason_of(name: str, machine: Machine) -> str:
    return RULES[name](Situation(small_model.small_config(), machine, "local"))


def test_settings_of_the_environment_are_lines():
    found = Machine("H100", (9, 0), environment={"PYTORCH_ALLOC_CONF": "expandable_segments:True"})
    assert not reason_of("expandable_segments", found)
    assert "not set" in reason_of("single_hardware_queue", found)
    other = {"PYTORCH_CUDA_ALLOC_CONF": "backend:native", "CUDA_DEVICE_MAX_CONNECTIONS": "8"}
    found = Machine("H100", (9, 0), environment=other)
    assert "PYTORCH_CUDA_ALLOC_CONF is backend:native" in reason_of("expandable_segments", found)
    assert "CUDA_DEVICE_MAX_CONNECTIONS is 8" in reason_of("single_hardware_queue", found)


def test_choices_are_named_with_their_reasons():
    lines = {f.name: str(f) for f in decide(small_model.small_config(), H100, "local")}
    assert lines["optimizer"] == "optimizer Transformer Engine's FusedAdam"
    assert lines["attention"] == "attention torch, document by document"
    assert lines["layers"].startswith("layers local: ")


ADA, AMPERE = Machine("RTX 4090", (8, 9)), Machine("A100", (8, 0))


@pytest.mark.parametrize(
    ("recipe", "machine", "layers", "reason"),
    [
        ("tensorwise", H100, "transformer_engine", ""),
        ("delayed", ADA, "transformer_engine", ""),
        ("blockwise", H100, "transformer_engine", ""),
        ("blockwise", ADA, "transformer_engine", "needs sm90 or later, and this GPU is sm89"),
        ("delayed", AMPERE, "transformer_engine", "needs sm89 or later, and this GPU is sm80"),
        ("delayed", H100, "local", "needs Transformer Engine's layers"),
        ("delayed", CPU, "local", "no GPU"),
    ],
)
def test_8_bits_are_on_where_they_are_asked_for_or_refused(recipe, machine, layers, reason):
    config = small_model.small_config("train.precision=bf16", f"train.fp8.recipe={recipe}")
    (line,) = [f for f in decide(config, machine, layers) if f.name == "fp8"]
    assert (line.value == "on") == (not reason) and reason in line.reason
    if not reason:
        check_fp8(config, machine, layers)
        return
    with pytest.raises(ConfigError, match=f"train.fp8.recipe {recipe}: .*{reason}; use none"):
        check_fp8(config, machine, layers)


def test_nobody_gets_8_bits_unasked():
    config = small_model.small_config("train.precision=bf16")
    assert not is_on("fp8", config, H100_WITH_ALL, "transformer_engine")
    check_fp8(config, CPU, "local")


def test_copies_ahead_need_somebody_who_reads_ahead():
    config = small_model.small_config("data.num_workers=1")
    assert is_on("copies_ahead", config, H100, "local")
    alone = small_model.small_config("data.num_workers=0")
    assert not is_on("copies_ahead", alone, H100, "local")
    assert not is_on("copies_ahead", config, CPU, "local")


def test_rows_are_shared_on_gpus_by_transformer_engine_alone():
    alone = small_model.small_config("train.precision=bf16")
    shared = small_model.small_config("train.precision=bf16", "parallel.context=2")
    check_context(alone, H100, "local")
    check_context(shared, CPU, "local")
    check_context(shared, H100, "transformer_engine")
    in_fp32 = small_model.small_config("train.precision=fp32", "parallel.context=2")
    for config, layers, reason in (
        (shared, "local", "layer_implementation is local"),
        (in_fp32, "transformer_engine", "no fused attention over packed documents in fp32"),
    ):
        with pytest.raises(ConfigError, match=f"parallel.context 2 needs .*{reason}"):
            check_context(config, H100, layers)
