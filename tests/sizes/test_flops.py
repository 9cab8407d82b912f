"""Operations of published models as whole numbers, multiplied out by hand from their shapes."""

from __future__ import annotations

import pytest

from nvlm.config import load_config
from nvlm.sizes.flops import ForwardFlops, StepFlops, forward_flops, step_flops
from nvlm.sizes.parameters import parameter_table

# A decoder layer: query, key and value; output; gate and up; down.
# 72B:   8192 x 10240 = 83,886,080 + 8192 x 8192 = 67,108,864
#        + 8192 x 59136 = 484,442,112 + 29568 x 8192 = 242,221,056: 877,658,112 weights, 80 times;
#        with the output layer of 8192 x 152064 = 1,245,708,288: 71,458,357,248 weights.
# 0.5B:  896 x 1152 = 1,032,192 + 896 x 896 = 802,816 + 896 x 9728 = 8,716,288
#        + 4864 x 896 = 4,358,144: 14,909,440, 24 times; the embedding's matrix once more as output
#        layer, 896 x 151936 = 136,134,656: 493,961,216.
# 4B:    2560 x 6144 = 15,728,640 + 4096 x 2560 = 10,485,760 + 2560 x 19456 = 49,807,360
#        + 9728 x 2560 = 24,903,680: 100,925,440, 36 times; the embedding's matrix once more,
#        2560 x 151936 = 388,956,160: 4,022,272,000.
# 4B with experts: every second layer has a second MLP for each token, 74,711,040, and the router's
#        8 x 2560 = 20,480: 18 x 74,731,520 = 1,345,167,360 more.
# 7B:    3584 x 4608 = 16,515,072 + 3584 x 3584 = 12,845,056 + 3584 x 37888 = 135,790,592
#        + 18944 x 3584 = 67,895,296: 233,046,016, 28 times; with the output layer of
#        3584 x 152064 = 544,997,376: 7,070,285,824.
# 34B:   7168 x 9216 = 66,060,288 + 7168 x 7168 = 51,380,224 + 7168 x 40960 = 293,601,280
#        + 20480 x 7168 = 146,800,640: 557,842,432, 60 times; with the output layer of
#        7168 x 64000 = 458,752,000: 33,929,297,920.
# Llama 1B: 2048 x 3072 = 6,291,456 + 2048 x 2048 = 4,194,304 + 3 x 2048 x 8192 = 50,331,648:
#        60,817,408, 16 times; the embedding's matrix once more, 2048 x 128256 = 262,668,288:
#        1,235,746,816.
# Mistral 7B: 4096 x 6144 = 25,165,824 + 4096 x 4096 = 16,777,216 + 3 x 4096 x 14336 = 176,160,768:
#        218,103,808, 32 times; with the output layer of 4096 x 32768 = 134,217,728: 7,113,539,584.
# Yi 6B: 4096 x 5120 = 20,971,520 + 16,777,216 + 3 x 4096 x 11008 = 135,266,304: 173,015,040, 32
#        times; with the output layer of 4096 x 64000 = 262,144,000: 5,798,625,280.
# Cross-attention: queries and output of all heads for each token of the decoder, keys and values
# for each of a tile's 256 tokens.
# 72B:   10 x 2 x 67,108,864 = 1,342,177,280 more for a token; 8192 x 2048 = 16,777,216, 10 times.
# 34B:   10 x 2 x 51,380,224 = 1,027,604,480 more; 7168 x 2048 = 14,680,064, 10 times.
# 7B:    7 x 2 x 12,845,056 = 179,830,784 more; 3584 x 1024 = 3,670,016, 7 times.
# An encoder layer: query, key and value of the stored heads; output; two matrices of the MLP.
# 6B:    3200 x 12288 = 39,321,600 + 4096 x 3200 = 13,107,200 + 2 x 3200 x 12800 = 81,920,000:
#        134,348,800, 45 times; 1025 positions, 1,050,625 pairs of them, 32 heads of 128.
# 300M:  1024 x 3072 = 3,145,728 + 1,048,576 + 2 x 1024 x 4096 = 8,388,608: 12,582,912, 24 times;
#        16 heads of 64.
# SigLIP: 4 x 1152 x 1152 = 5,308,416 + 2 x 1152 x 4304 = 9,916,416: 15,224,832, 27 times; 1024
#        positions, 1,048,576 pairs of them, 1152 wide.
FORWARD = {
    "nvlm_d_72b/sft": ForwardFlops(
        per_token=142_916_714_496,
        per_token_pair=1_310_720,  # 2 x 80 x 8192
        encoder_per_tile=12_393_676_800_000 + 774_604_800_000,
        projector_per_tile=256 * 1_241_382_912,  # 256 tokens: 2 x (12800 x 29568 + 29568 x 8192)
    ),
    "nvlm_x_72b/sft": ForwardFlops(
        per_token=142_916_714_496 + 2_684_354_560,
        per_token_pair=1_310_720,
        encoder_per_tile=12_393_676_800_000 + 774_604_800_000,
        projector_per_tile=256 * 209_715_200,  # 256 tokens: 2 x 12800 x 8192
        beside_per_tile=256 * 335_544_320,
    ),
    "nvlm_h_34b/sft": ForwardFlops(
        per_token=67_858_595_840 + 2_055_208_960,
        per_token_pair=860_160,  # 2 x 60 x 7168
        encoder_per_tile=12_393_676_800_000 + 774_604_800_000,
        projector_per_tile=256 * 817_889_280,  # 256 tokens: 2 x (12800 x 20480 + 20480 x 7168)
        beside_per_tile=256 * 293_601_280,
    ),
    "internvit_300m_qwen2_5_7b_x/sft": ForwardFlops(
        per_token=14_140_571_648 + 359_661_568,
        per_token_pair=200_704,
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 29_360_128,  # 256 tokens: 2 x 4096 x 3584
        beside_per_tile=256 * 51_380_224,
    ),
    "internvit_300m_qwen2_5_7b_h/sft": ForwardFlops(
        per_token=14_140_571_648 + 359_661_568,
        per_token_pair=200_704,
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 290_979_840,
        beside_per_tile=256 * 51_380_224,
    ),
    "internvit_300m_qwen2_0_5b/sft": ForwardFlops(
        per_token=987_922_432,
        per_token_pair=43_008,  # 2 x 24 x 896
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 48_562_176,  # 256 tokens: 2 x (4096 x 4864 + 4864 x 896)
    ),
    # Heads are wider than the hidden states.
    "internvit_300m_qwen3_4b/sft": ForwardFlops(
        per_token=8_044_544_000,
        per_token_pair=294_912,  # 2 x 36 x 32 x 128
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 129_499_136,  # 256 tokens: 2 x (4096 x 9728 + 9728 x 2560)
    ),
    "internvit_300m_qwen3_4b_moe/sft": ForwardFlops(
        per_token=8_044_544_000 + 2_690_334_720,
        per_token_pair=294_912,
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 129_499_136,
    ),
    "internvit_300m_qwen2_5_7b_128k/sft": ForwardFlops(
        per_token=14_140_571_648,
        per_token_pair=200_704,  # 2 x 28 x 3584
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 290_979_840,  # 256 tokens: 2 x (4096 x 18944 + 18944 x 3584)
    ),
    "internvit_300m_llama_3_2_1b/sft": ForwardFlops(
        per_token=2_471_493_632,
        per_token_pair=65_536,  # 2 x 16 x 2048
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 100_663_296,  # 256 tokens: 2 x (4096 x 8192 + 8192 x 2048)
    ),
    "internvit_300m_mistral_7b/sft": ForwardFlops(
        per_token=14_227_079_168,
        per_token_pair=262_144,  # 2 x 32 x 4096
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 234_881_024,  # 256 tokens: 2 x 2 x 4096 x 14336
    ),
    "internvit_300m_yi_6b/sft": ForwardFlops(
        per_token=11_597_250_560,
        per_token_pair=262_144,
        encoder_per_tile=619_079_270_400 + 103_280_640_000,
        projector_per_tile=256 * 180_355_072,  # 256 tokens: 2 x 2 x 4096 x 11008
    ),
    "siglip_so400m_qwen3_4b/sft": ForwardFlops(
        per_token=8_044_544_000,
        per_token_pair=294_912,
        encoder_per_tile=841_872_310_272 + 130_459_631_616,
        projector_per_tile=256 * 139_460_608,  # 256 tokens: 2 x (4608 x 9728 + 9728 x 2560)
    ),
}
# The encoder is frozen and runs forwards. A tile's 256 tokens of projector: 72B
# 3 x 256 x 1,241,382,912 = 953,382,076,416.
STEP = {
    # A frozen decoder passes gradients on: 2 x a token's forward pass.
    "nvlm_d_72b/pretrain": StepFlops(285_833_428_992, 3_932_160, 14_121_663_676_416),
    "nvlm_d_72b/sft": StepFlops(428_750_143_488, 3_932_160, 14_121_663_676_416),
    # All of the decoder trains, cross-attention among it: three passes.
    "nvlm_x_72b/sft": StepFlops(
        436_803_207_168, 3_932_160, 13_168_281_600_000 + 161_061_273_600 + 257_698_037_760
    ),
    "nvlm_h_34b/sft": StepFlops(
        209_741_414_400, 2_580_480, 13_168_281_600_000 + 628_138_967_040 + 225_485_783_040
    ),
    "internvit_300m_qwen2_0_5b/sft": StepFlops(2_963_767_296, 129_024, 759_655_661_568),
}


@pytest.mark.parametrize("name", FORWARD)
def test_one_forward_pass(name):
    assert forward_flops(load_config(name).model) == FORWARD[name]


@pytest.mark.parametrize("name", STEP)
def test_training(name):
    assert step_flops(load_config(name)) == STEP[name]


def test_an_encoder_that_trains_runs_three_times():
    config = load_config("nvlm_d_72b/sft", ["stage.freeze=[]"])
    assert step_flops(config).per_tile == 3 * 13_168_281_600_000 + 953_382_076_416


def test_features_of_three_layers():
    """The projector reads 4 patches of 3 x 1024 channels for each of 256 tokens: 12,288 x 4864
    and 4864 x 896 weights in the place of 4096 x 4864 and these; its norm is three times as wide.
    """
    layers = "model.vision.feature_layers=[-24, -12, -1]"
    before = load_config("internvit_300m_qwen2_0_5b/sft").model
    model = load_config("internvit_300m_qwen2_0_5b/sft", [layers]).model
    found = forward_flops(model)
    assert found.projector_per_tile == 256 * 2 * (12_288 * 4864 + 4864 * 896)
    assert found.encoder_per_tile == forward_flops(before).encoder_per_tile
    counts = [sum(row.size for row in parameter_table(one)) for one in (before, model)]
    assert counts[1] - counts[0] == 8192 * (4864 + 2)


def test_deepstack_has_connectors_of_its_own():
    """Three connectors as before in the place of one: 4096 x (4864 + 2) + 4864 x 896 weights."""
    keys = ["model.deepstack=levels", "model.vision.feature_layers=[-17, -9, -1]"]
    before = load_config("internvit_300m_qwen2_0_5b/sft").model
    model = load_config("internvit_300m_qwen2_0_5b/sft", keys).model
    found, expected = forward_flops(model), forward_flops(before)
    assert found.projector_per_tile == 3 * expected.projector_per_tile
    assert found.per_token == expected.per_token
    counts = [sum(row.size for row in parameter_table(one)) for one in (before, model)]
    assert counts[1] - counts[0] == 2 * (4096 * (4864 + 2) + 4864 * 896)


def test_levels_in_turn_have_connectors_of_their_own():
    """Of 4096 x 3584 weights and a norm of 4096; keys and values are of as many tokens."""
    run, levels = "internvit_300m_qwen2_5_7b_x/sft", "model.vision.feature_layers=[-13, -1]"
    before = load_config(run).model
    model = load_config(run, [levels, "model.cross_attention.levels=in_turn"]).model
    found, expected = forward_flops(model), forward_flops(before)
    assert found.projector_per_tile == 2 * expected.projector_per_tile
    assert found.beside_per_tile == expected.beside_per_tile
    counts = [sum(row.size for row in parameter_table(one)) for one in (before, model)]
    assert counts[1] - counts[0] == 4096 * 3584 + 2 * 4096


def test_cross_attention_of_the_72b():
    """Ten layers: queries and output 8192 x 8192 each, for every token of the decoder; keys and
    values of 8 heads, 8192 x 2048 = 16,777,216, for each of a tile's 256 tokens."""
    decoder_only = load_config("nvlm_d_72b/sft")
    fused = load_config(
        "nvlm_d_72b/sft",
        [
            "model.fusion=cross_attention",
            "model.cross_attention.layer_interval=8",
            "stage.max_tiles_per_sequence=24",
        ],
    )
    found, before = forward_flops(fused.model), forward_flops(decoder_only.model)
    assert found.per_token - before.per_token == 2 * 10 * 2 * 67_108_864
    assert found.beside_per_tile == 2 * 10 * 16_777_216 * 256 and before.beside_per_tile == 0
    # Its decoder trains but for nothing: three passes.
    per_tile = step_flops(fused).per_tile - step_flops(decoder_only).per_tile
    assert per_tile == 3 * found.beside_per_tile


def test_a_sequence_with_padding():
    """Documents of 3 and 4 tokens in 10, and 2 tiles: 9 + 16 + 9 pairs."""
    flops = StepFlops(per_token=1_000_000, per_token_pair=1_000, per_tile=7)
    assert flops.of_sequence([3, 4], 2, 10) == 10_000_000 + 34_000 + 14
