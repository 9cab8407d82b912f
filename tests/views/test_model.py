"""`nvlm model summary`: the built model against counts by hand, transformers, and the config's own.

Nothing here takes the memory of a model: 72 billion parameters are shapes on the meta device.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from helpers import published_models
from helpers.paths import REPOSITORY

from nvlm.config import RunConfig, load_config
from nvlm.errors import ConfigError
from nvlm.sizes.derived import derive
from nvlm.views.model import print_summary, summarize


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(REPOSITORY / f"configs/run/{name}/sft.yaml", overrides)


# By hand. InternViT, width w, ffn f, h stored heads of d channels, per layer: qkv 3hd x w, proj
# w x hd and w, MLP 2wf + f + w, LayerScale 2w; the 6B has norms of 2w and QK-norm of 2hd, the 300M
# norms of 4w and qkv biases of 3hd. Besides the layers: patches 3 x 14 x 14 x w + w, class token
# w, 1025 positions of w.
#   6B: 45 x 134,388,992 + 5,168,000; with 25 heads in place of 32: 45 x 122,918,400 + 5,168,000.
#   300M: 24 x 12,598,272 + 1,653,760.
# Projector, 4w -> p -> l: norm 8w, two matrices (4w + l) p.
# Language model, width l, ffn f, n heads and g groups of d channels, per layer: q, k and v
# (n + 2g) d x l (Qwen2: and as many biases), output l x l, SwiGLU 3lf, norms 2l. Besides: the
# embedding v x l, the output layer as large (the 0.5B shares it), the last norm l.
#   Qwen2-72B: 80 x 877,684,736 + 2 x 152,064 x 8192 + 8192
#   Yi-34B:    60 x 557,856,768 + 2 x 64,000 x 7168 + 7168
#   Qwen2-7B:  28 x 233,057,792 + 2 x 152,064 x 3584 + 3584
#   Qwen2-0.5B: 24 x 14,912,384 + 151,936 x 896 + 896
# Cross-attention of 10 layers, each queries n d x l, keys and values 2 g d x l, output l x n d, a
# norm of l and a gate: 72B 10 x 151,003,137, 34B 10 x 117,447,681. NVLM-X's projector: norm 8w,
# and 4w x l.
COUNTS = {
    "nvlm_d_72b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 620_717_056,
        "language_model": 72_706_203_648,
        "total": 79_379_593_344,
        "without zero heads": 78_863_416_704,
    },
    "nvlm_d_34b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 408_970_240,
        "language_model": 34_388_917_248,
        "total": 40_850_560_128,
        "without zero heads": 40_334_383_488,
    },
    "nvlm_x_72b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 104_883_200,
        "language_model": 74_216_235_018,
        "total": 80_373_790_858,
        "without zero heads": 79_857_614_218,
    },
    "nvlm_h_72b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 620_717_056,
        "language_model": 74_216_235_018,
        "total": 80_889_624_714,
        "without zero heads": 80_373_448_074,
    },
    "nvlm_x_34b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 91_776_000,
        "language_model": 35_563_394_058,
        "total": 41_707_842_698,
        "without zero heads": 41_191_666_058,
    },
    "nvlm_h_34b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 408_970_240,
        "language_model": 35_563_394_058,
        "total": 42_025_036_938,
        "without zero heads": 41_508_860_298,
    },
    "internvit_6b_qwen2_7b": {
        "vision_model": 6_052_672_640,
        "vision_projection": 310_404_096,
        "language_model": 7_615_616_512,
        "total": 13_978_693_248,
        "without zero heads": 13_462_516_608,
    },
    "internvit_300m_qwen2_5_7b_x": {
        "vision_model": 304_012_288,
        "vision_projection": 14_688_256,
        "language_model": 7_821_162_503,
        "total": 8_139_863_047,
        "without zero heads": 8_139_863_047,
    },
    "internvit_300m_qwen2_5_7b_h": {
        "vision_model": 304_012_288,
        "vision_projection": 145_498_112,
        "language_model": 7_821_162_503,
        "total": 8_270_672_903,
        "without zero heads": 8_270_672_903,
    },
    "internvit_300m_llama_3_2_1b": {
        "vision_model": 304_012_288,
        "vision_projection": 50_339_840,
        "language_model": 1_235_814_400,
        "total": 1_590_166_528,
        "without zero heads": 1_590_166_528,
    },
    "internvit_300m_mistral_7b": {
        "vision_model": 304_012_288,
        "vision_projection": 117_448_704,
        "language_model": 7_248_023_552,
        "total": 7_669_484_544,
        "without zero heads": 7_669_484_544,
    },
    "internvit_300m_yi_6b": {
        "vision_model": 304_012_288,
        "vision_projection": 90_185_728,
        "language_model": 6_061_035_520,
        "total": 6_455_233_536,
        "without zero heads": 6_455_233_536,
    },
    "siglip_so400m_qwen3_4b": {
        "vision_model": 413_532_144,
        "vision_projection": 69_739_520,
        "language_model": 4_022_468_096,
        "total": 4_505_739_760,
        "without zero heads": 4_505_739_760,
    },
    "internvit_300m_qwen2_0_5b": {
        "vision_model": 304_012_288,
        "vision_projection": 24_289_280,
        "language_model": 494_032_768,
        "total": 822_334_336,
        "without zero heads": 822_334_336,
    },
}


def test_the_counts_by_hand_are_calculated_right():
    def vision(width, ffn, heads, channels, num_layers, norms_and_biases):
        attention = 4 * heads * channels * width + width
        mlp = 2 * width * ffn + ffn + width
        layer = attention + mlp + 2 * width + norms_and_biases
        return num_layers * layer + (3 * 14 * 14 + 1 + 1 + 1025) * width

    def siglip(width, ffn, num_layers):
        layer = 4 * width**2 + 2 * width * ffn + 9 * width + ffn
        return num_layers * layer + (3 * 16 * 16 + 1 + 1024) * width

    def language(vocab, width, ffn, heads, groups, channels, num_layers, has_bias, num_matrices):
        qkv = (heads + 2 * groups) * channels * (width + has_bias)
        layer = qkv + width * width + 3 * width * ffn + 2 * width
        return num_layers * layer + num_matrices * vocab * width + width

    def projector(vision_width, ffn, language_width):
        return 8 * vision_width + (4 * vision_width + language_width) * ffn

    def crossing(width, heads, groups, channels, num_layers=10):
        return num_layers * (
            2 * heads * channels * width + 2 * groups * channels * width + width + 1
        )

    padded = vision(3200, 12800, 32, 128, 45, 2 * 3200 + 2 * 4096)
    real = vision(3200, 12800, 25, 128, 45, 2 * 3200 + 2 * 3200)
    small = vision(1024, 4096, 16, 64, 24, 4 * 1024 + 3 * 1024)
    calculated = {
        "nvlm_d_72b": (padded, projector(3200, 29568, 8192),
                       language(152064, 8192, 29568, 64, 8, 128, 80, 1, 2)),
        "nvlm_d_34b": (padded, projector(3200, 20480, 7168),
                       language(64000, 7168, 20480, 56, 8, 128, 60, 0, 2)),
        **{
            f"nvlm_{fusion}_{size}": (padded, connector, decoder)
            for size, decoder in {
                "72b": language(152064, 8192, 29568, 64, 8, 128, 80, 1, 2)
                + crossing(8192, 64, 8, 128),
                "34b": language(64000, 7168, 20480, 56, 8, 128, 60, 0, 2)
                + crossing(7168, 56, 8, 128),
            }.items()
            for fusion, connector in {
                "x": 8 * 3200 + 4 * 3200 * {"72b": 8192, "34b": 7168}[size],
                "h": projector(3200, *{"72b": (29568, 8192), "34b": (20480, 7168)}[size]),
            }.items()
        },
        "internvit_6b_qwen2_7b": (padded, projector(3200, 18944, 3584),
                                  language(152064, 3584, 18944, 28, 4, 128, 28, 1, 2)),
        **{
            f"internvit_300m_qwen2_5_7b_{fusion}": (
                small, connector,
                language(152064, 3584, 18944, 28, 4, 128, 28, 1, 2) + crossing(3584, 28, 4, 128, 7),
            )
            for fusion, connector in {
                "x": 8 * 1024 + 4 * 1024 * 3584, "h": projector(1024, 18944, 3584)
            }.items()
        },
        "internvit_300m_llama_3_2_1b": (small, projector(1024, 8192, 2048),
                                        language(128256, 2048, 8192, 32, 8, 64, 16, 0, 1)),
        "internvit_300m_mistral_7b": (small, projector(1024, 14336, 4096),
                                      language(32768, 4096, 14336, 32, 8, 128, 32, 0, 2)),
        "internvit_300m_yi_6b": (small, projector(1024, 11008, 4096),
                                 language(64000, 4096, 11008, 32, 4, 128, 32, 0, 2)),
        # Qwen3-4B: see docs/models.md.
        "siglip_so400m_qwen3_4b": (siglip(1152, 4304, 27), projector(1152, 9728, 2560),
                                   4_022_468_096),
        "internvit_300m_qwen2_0_5b": (small, projector(1024, 4864, 896),
                                      language(151936, 896, 4864, 14, 2, 64, 24, 1, 1)),
    }  # fmt: skip
    for name, parts in calculated.items():
        assert list(COUNTS[name].values())[:4] == [*parts, sum(parts)]
        zero = 0 if parts[0] != padded else padded - real
        assert COUNTS[name]["without zero heads"] == sum(parts) - zero


@pytest.mark.parametrize("name", COUNTS)
def test_built_model_has_these_parameters(name):
    config = load(name)
    summary = summarize(config)
    assert {
        **{component: count.total for component, count in summary.parameters.items()},
        "total": summary.total.total,
        "without zero heads": summary.total.total - summary.num_zero,
    } == COUNTS[name]
    # Counted once more, from the configuration alone.
    numbers = derive(config)
    assert summary.parameters == numbers.parameters
    assert summary.total == numbers.total
    assert summary.num_zero == numbers.num_zero_parameters


def test_the_documentation_has_these_counts():
    page = (REPOSITORY / "docs/models.md").read_text()
    for counts in COUNTS.values():
        assert all(f"{count:,}" in page for count in counts.values())


def test_shared_tiles_put_the_whole_encoder_on_every_process():
    even = "parallel.layout=even"
    split = summarize(load("nvlm_d_72b", even))
    shared = summarize(load("nvlm_d_72b", even, "parallel.vision=tile_parallel"))
    vision = 6_052_672_640
    assert (shared.parameters, shared.total) == (split.parameters, split.total)
    assert [stage.parameters["vision_model"].total for stage in shared.stages] == [vision] * 4
    assert [stage.num_copied for stage in shared.stages] == [0, vision, vision, vision]
    assert [stage.total.trainable for stage in shared.stages] == [
        stage.total.trainable for stage in split.stages
    ]
    later = zip(shared.stages[1:], split.stages[1:], strict=True)
    assert all(ours.num_per_process - theirs.num_per_process == vision for ours, theirs in later)


@pytest.mark.parametrize("sizes", [(20, 20, 20, 20), (12, 23, 23, 22)])
def test_stages_of_the_72b_at_tensor_8_pipeline_4(sizes: tuple[int, ...]):
    """Layers of 877,684,736 each; the embedding and the output layer have 152,064 x 8192."""
    stages = summarize(load("nvlm_d_72b", f"parallel.layout={list(sizes)}")).stages
    layers, vocabulary = [size * 877_684_736 for size in sizes], 152_064 * 8192
    vision, projector = 6_052_672_640, 620_717_056
    totals = [vision + projector + vocabulary + layers[0], *layers[1:3]]
    totals.append(layers[3] + 8192 + vocabulary)
    assert [stage.total.total for stage in stages] == totals
    assert [stage.parameters["vision_model"].total for stage in stages] == [vision, 0, 0, 0]
    assert [stage.parameters["vision_projection"].total for stage in stages] == [projector, 0, 0, 0]
    assert [stage.total.frozen for stage in stages] == [vision, 0, 0, 0]
    starts = [sum(sizes[:stage]) for stage in range(4)]
    assert [stage.layers for stage in stages] == [
        [list(range(start, start + size))] for start, size in zip(starts, sizes, strict=True)
    ]
    # A layer on one of eight processes: the norms are whole on each, the rest is split.
    norms = sizes[1] * 2 * 8192
    assert stages[1].num_per_process == (layers[1] - norms) // 8 + norms


def test_virtual_stages_hold_the_same_in_other_places():
    even = "parallel.layout=even"
    interleaved = summarize(load("nvlm_d_72b", even, "parallel.virtual_pipeline=2"))
    contiguous = summarize(load("nvlm_d_72b", even))
    assert interleaved.parameters == contiguous.parameters
    assert [s.total for s in interleaved.stages] == [s.total for s in contiguous.stages]
    assert interleaved.stages[1].layers == [list(range(10, 20)), list(range(50, 60))]


def test_shared_embedding_is_copied_to_the_last_stage_and_counted_once():
    summary = summarize(load("internvit_300m_qwen2_0_5b", "parallel.pipeline=2"))
    assert summary.total.total == COUNTS["internvit_300m_qwen2_0_5b"]["total"]
    embedding = 151_936 * 896
    assert [stage.num_copied for stage in summary.stages] == [0, embedding]
    assert summary.stages[1].total.total == 12 * 14_912_384 + 896 + embedding
    assert sum(stage.total.total for stage in summary.stages) == summary.total.total + embedding


@pytest.mark.parametrize(
    "layout",
    [[], ["parallel.tensor=2"], ["parallel.pipeline=4"],
     ["parallel.tensor=2", "parallel.pipeline=2", "parallel.virtual_pipeline=2"]],
)  # fmt: skip
def test_layouts_and_freezing_change_no_sum(layout):
    freeze = "stage.freeze=['vision_model.*', 'language_model.decoder.layers.3.*']"
    config = load("tiny", freeze, *layout)
    summary, numbers = summarize(config), derive(config)
    assert summary.parameters == numbers.parameters
    assert sum(stage.total.trainable for stage in summary.stages) == numbers.total.trainable


def _count(model: torch.nn.Module) -> int:
    """Tied parameters count once."""
    return sum(math.prod(parameter.shape) for parameter in model.parameters())


@pytest.mark.parametrize(
    # It has no NVLM-X and NVLM-H.
    "name",
    [name for name in COUNTS if not {"x", "h"} & set(name.split("_"))],
)
def test_transformers_builds_language_models_of_the_same_size(name):
    with torch.device("meta"):
        model = published_models.language_model(load(name).model.language)
        model.tie_weights()
    assert _count(model) == COUNTS[name]["language_model"]


@pytest.mark.parametrize(
    "name, without_zero_heads",
    [("internvit_300m_qwen2_0_5b", 304_012_288), ("nvlm_d_72b", 5_536_496_000)],
)
def test_transformers_builds_vision_models_of_the_same_size(name, without_zero_heads):
    with torch.device("meta"):
        model = published_models.vision_model(load(name).model.vision)
    num_zero = derive(load(name)).num_zero_parameters
    assert _count(model) == COUNTS[name]["vision_model"] - num_zero == without_zero_heads


# The kernel's own peak of the process: what `wait4` reports begins with the parent's.
COMMAND_AND_PEAK_MEMORY = """
import sys
from nvlm.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
with open("/proc/self/status") as status:
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""


def test_command_prints_json_and_takes_little_memory():
    arguments = ["model", "summary", "configs/run/nvlm_d_72b/sft.yaml", "--json"]
    arguments.append("parallel.layout=even")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_AND_PEAK_MEMORY, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(done.stdout)
    assert summary["total"] == {
        "parameters": 79_379_593_344,
        "trainable": 73_326_920_704,
        "frozen": 6_052_672_640,
        "zero_heads": 516_176_640,
        "without_zero_heads": 78_863_416_704,
    }
    layout = {"tensor": 8, "pipeline": 4, "virtual_pipeline": 1, "vision": "tensor"}
    assert summary["layout"] == layout
    assert [stage["parameters"] for stage in summary["pipeline_stages"]] == [
        25_472_792_704, 17_553_694_720, 17_553_694_720, 18_799_411_200,
    ]  # fmt: skip
    # Measured: 0.4 GB, nearly all of it the imported libraries.
    assert int(done.stderr.split()[-1]) * 1024 < 1e9


def test_tables_hold_whole_numbers(capsys):
    print_summary(load("internvit_300m_qwen2_0_5b", "parallel.pipeline=2"))
    printed = capsys.readouterr().out
    for number in ("822,334,336", "304,012,288", "643,384,832", "315,084,160", "136,134,656"):
        assert number in printed
    assert "zero heads" not in printed
    print_summary(load("nvlm_d_72b", "parallel.layout=even"))
    printed = capsys.readouterr().out
    for number in ("79,379,593,344", "78,863,416,704", "25,472,792,704", "3,189,686,208", "60-79"):
        assert number in printed


def test_a_stage_without_layers_is_said_to_have_none(capsys):
    overrides = ["parallel.pipeline=2", "parallel.virtual_pipeline=2"]
    print_summary(load("tiny", *overrides, "parallel.layout=[[0, 1], [2, 1]]"))
    printed = capsys.readouterr().out
    assert "0: none, 2-2" in printed and "1: 0-1, 3-3" in printed


def test_a_freeze_pattern_without_a_match_is_refused():
    with pytest.raises(ConfigError, match=r"'vison\.\*' matches no parameter; .*vision_model\.\*"):
        summarize(load("tiny", "stage.freeze=['vison.*']", "parallel.pipeline=2"))
