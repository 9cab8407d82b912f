"""The plan as a whole: limits that are known, and what a change of layout must do."""

from __future__ import annotations

import runpy

import pytest
from helpers.paths import REPOSITORY

from nvlm.config import load_config
from nvlm.errors import ConfigError
from nvlm.plan.assumptions import assumptions_for
from nvlm.plan.estimate import Plan, make_plan
from nvlm.plan.hardware import CARDS
from nvlm.plan.work import largest_work
from nvlm.sizes.flops import forward_flops

SFT = "nvlm_d_72b/sft"
PLAIN = ["parallel.sequence=no", "parallel.layout=even"]
# A card with nothing but its peak to wait for.
PERFECT = {
    "matmul_efficiency": 1.0, "attention_efficiency_forward": 1.0,
    "attention_efficiency_backward": 1.0, "memory_bandwidth": 1e30, "link_bandwidth": 1e30,
    "network_bandwidth": 1e30, "link_latency": 0.0, "network_latency": 0.0, "launch_seconds": 0.0,
}  # fmt: skip


def plan(name: str, num_gpus: int, *overrides: str, assume: dict | None = None) -> Plan:
    config = load_config(REPOSITORY / f"configs/run/{name}.yaml", [*PLAIN, *overrides])
    return make_plan(
        config, num_gpus, assumptions_for(CARDS["h100-80gb"], assume), largest_work(config)
    )


@pytest.mark.parametrize(
    "name, frozen", [("nvlm_d_34b/sft", None), ("nvlm_d_34b/pretrain", None),
                     ("internvit_300m_qwen2_0_5b/sft", "stage.freeze=[]")],
)  # fmt: skip
def test_a_perfect_card_reaches_its_peak(name: str, frozen: str | None):
    """The products of layers, encoder and head are the operations counted from the table of
    parameters; attention's backward pass computes five products for the four that are needed, and
    nothing else is lost."""
    # One tensor rank: of several, each makes all patches of pixels.
    overrides = ["parallel.tensor=1", *([frozen] if frozen else [])]
    found = plan(name, 32, *overrides, assume=PERFECT)
    model, work = found.config.model, found.work
    attention = forward_flops(model).per_token_pair * work.token_pairs
    if frozen is not None:
        positions = model.vision.num_patches + 1
        attention += 4 * 24 * 1024 * positions**2 * work.num_tiles
    needed = found.flops.total / found.config.train.global_batch_size
    assert found.mfu == pytest.approx(needed / (needed + attention / 2))
    lost = {k: share for k, share in found.losses.items() if abs(share) > 1e-9}
    assert lost.keys() == {"useful", "products_below_peak"}


def test_adapters_take_the_time_of_their_operations():
    """As above; the frozen encoder's attention runs forwards only."""
    recompute = "train.recompute.language.granularity=none"
    found = plan("internvit_300m_qwen2_5_7b/lora", 1, recompute, assume=PERFECT)
    attention = forward_flops(found.config.model).per_token_pair * found.work.token_pairs
    needed = found.flops.total / found.config.train.global_batch_size
    assert found.mfu == pytest.approx(needed / (needed + attention / 2))
    # Two operations a weight forwards and four backwards; of the frozen matrices, four in all.
    frozen = plan("internvit_300m_qwen2_5_7b/pretrain", 1, "stage.sequence_length=2048")
    per_sequence = [p.flops.decoder / p.config.train.global_batch_size for p in (found, frozen)]
    assert per_sequence[0] - per_sequence[1] == pytest.approx(6 * 40_370_176 * 2048)


def test_pipeline_of_a_perfect_card_loses_its_bubble_and_its_imbalance():
    found = plan(SFT, 128, assume=PERFECT)
    lost = {k for k, share in found.losses.items() if abs(share) > 1e-9}
    assert lost == {"useful", "products_below_peak", "pipeline_bubble", "uneven_stages"}
    # Of stages that take the same time: 3 of 32 micro-batches.
    busy = found.losses["useful"] + found.losses["products_below_peak"]
    assert found.losses["pipeline_bubble"] == pytest.approx(busy * 3 / 32)


@pytest.mark.parametrize("overrides", [[], ["parallel.sequence=true"],
    ["parallel.virtual_pipeline=5"], ["train.recompute.language.granularity=full"]])  # fmt: skip
def test_shares_of_the_step_are_all_of_it(overrides: list[str]):
    found = plan(SFT, 128, *overrides)
    assert sum(found.losses.values()) == pytest.approx(1)
    assert found.losses["useful"] == pytest.approx(found.mfu)
    assert all(share > -1e-9 for share in found.losses.values())


def test_what_changes_of_layout_do():
    plain = plan(SFT, 128)
    sequence = plan(SFT, 128, "parallel.sequence=true")
    assert sequence.peak_bytes < plain.peak_bytes
    assert sequence.losses["elementwise"] < plain.losses["elementwise"]
    cut = plan(SFT, 128, "parallel.layout=auto")
    assert cut.step_seconds < plain.step_seconds
    assert cut.losses["uneven_stages"] < plain.losses["uneven_stages"] / 4
    interleaved = plan(SFT, 128, "parallel.virtual_pipeline=5")
    assert interleaved.losses["pipeline_bubble"] < plain.losses["pipeline_bubble"]
    again = plan(SFT, 128, "train.recompute.language.granularity=full")
    assert again.peak_bytes < plain.peak_bytes
    assert again.step_seconds > plain.step_seconds and again.flops == plain.flops
    assert again.losses["recomputed"] > 0.1


def test_processes_that_share_rows_hold_less_of_them():
    long = [
        "stage.sequence_length=131072",
        "model.language.max_position_embeddings=131072",
        "model.language.rope_scaling={kind: yarn, factor: 4}",
        "parallel.tensor=8",
        "parallel.sequence=true",
        "parallel.pipeline=2",
        "train.global_batch_size=64",
        "train.recompute.language.granularity=full",
    ]
    alone = plan(SFT, 128, *long)
    shared = plan(SFT, 128, *long, "parallel.context=8")
    assert (alone.data_size, shared.data_size) == (8, 1)
    for one, other in zip(alone.stages, shared.stages, strict=True):
        # The weights' copies and the optimizer's shares are as many; a row's activations are not.
        assert other.bytes.kept == one.bytes.kept
        assert other.bytes.logits == pytest.approx(one.bytes.logits / 8, rel=1e-3)
        assert other.bytes.activations < one.bytes.activations / 5  # the table of angles is whole
    assert shared.flops == alone.flops
    assert sum(shared.losses.values()) == pytest.approx(1)


def test_more_gpus_take_less_time_and_lose_more():
    few, many = plan(SFT, 128), plan(SFT, 512)
    assert many.step_seconds < few.step_seconds
    assert many.mfu < few.mfu
    assert many.flops == few.flops
    assert many.hours * 512 > few.hours * 128


@pytest.mark.parametrize(
    "wanted, kept",
    [
        (["checkpoint.every=30"], 4),  # 30, 60, 90 and the end
        (["checkpoint.every=30", "checkpoint.keep=2"], 2),
        (["checkpoint.every=30", "checkpoint.keep=2", "checkpoint.keep_every=25"], 5),  # 75 and 90
        (["checkpoint.every=1000"], 1),
    ],
)
def test_checkpoints_that_stay(wanted, kept):
    steps = ["train.steps=100", "checkpoint.keep=null"]
    assert (
        plan("nvlm_d_72b/sft", 32, *steps, "checkpoint.keep_every=null", *wanted).num_checkpoints
        == kept
    )


def test_checkpoints_by_the_time():
    found = plan("nvlm_d_72b/sft", 32, "checkpoint.every=1h", "checkpoint.keep_every=null")
    assert found.num_checkpoints == 2
    found = plan("nvlm_d_72b/sft", 32, "checkpoint.keep=null", "checkpoint.keep_every=null")
    assert found.num_checkpoints == pytest.approx(found.hours, abs=1.01)


def test_host_memory_of_saves_is_all_of_a_checkpoint_together():
    found = plan("nvlm_d_72b/sft", 128)
    together = found.staged_bytes * 128
    assert found.checkpoint.total < together < 1.25 * found.checkpoint.total  # of the fullest stage
    assert plan("nvlm_d_72b/sft", 128, "checkpoint.background=false").staged_bytes == 0


def test_a_number_that_does_not_fit_the_layout_is_refused():
    with pytest.raises(ConfigError, match=r"100 processes do not fit parallel.tensor 8 x"):
        plan(SFT, 100)


def test_the_page_of_scaling_has_what_plans_say_now():
    """After a change of a plan or of a shipped run, `scripts/scale_table` writes it anew."""
    tables = runpy.run_path(str(REPOSITORY / "scripts" / "scale_table"))
    text = tables["PAGE"].read_text(encoding="utf-8")
    assert tables["page"](text) == text
