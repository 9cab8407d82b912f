"""bf16: the published arithmetic of norms and layer scales; fp32 main parameters that add up."""

from __future__ import annotations

import pytest
import torch
from helpers import beside_batches, layout_steps, small_model
from helpers.published_vision import as_megatron, published_vision_model
from helpers.small_model import mean_loss_gradients
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from nvlm.batch import StepBatch
from nvlm.model.encoders.internvit import LayerScale
from nvlm.model.parts import norms
from nvlm.model.parts.names import named_parameters
from nvlm.model.parts.transformer_config import vision_transformer_config
from nvlm.train.training import Training

TRUTH = "transformers InternVL, bf16"
TRAINING = [
    "stage.freeze=[]",
    "model.vision.num_layers=1",
    "model.language.num_layers=1",
    "train.precision=bf16",
    # One update moves a weight of 1 by an eighth of bf16's distance to the next number below.
    "train.optimizer.lr=5e-4",
    "train.optimizer.min_lr=5e-4",
    "train.optimizer.weight_decay=0",
    "train.schedule.warmup_steps=0",
]


def bf16(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (scale * drawn).to(torch.bfloat16)


def published_norm(weight: Tensor, epsilon: float):
    from transformers.models.internvl.modeling_internvl import InternVLVisionRMSNorm

    norm = InternVLVisionRMSNorm(len(weight), eps=epsilon).to(torch.bfloat16)
    norm.weight.data.copy_(weight)
    return norm


@pytest.fixture
def config(parallel):
    run = small_model.small_config("train.precision=bf16")
    return vision_transformer_config(run, run.model.vision, "local")


def test_rms_norm_is_the_published_one(config, measure):
    size, epsilon = config.hidden_size, config.layernorm_epsilon
    weight, hidden = bf16(size, seed=1), bf16(65, 3, size, seed=2, scale=4)
    ours = norms.RMSNorm(config, size, epsilon)
    ours.weight.data.copy_(weight)
    theirs = published_norm(weight, epsilon)
    assert ours(hidden).dtype == torch.bfloat16
    error = float((ours(hidden) - theirs(hidden)).detach().abs().max())
    measure("RMSNorm in bf16, largest difference", TRUTH, error, 0)
    # The order matters: cast after the weight, the result would be another one.
    scale = torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + epsilon)
    assert not torch.equal(ours(hidden), (hidden.float() * scale * weight).to(torch.bfloat16))


@pytest.mark.parametrize("num_stored", [5, 8])
def test_query_key_norm_is_the_published_one(num_stored, parallel, measure, monkeypatch):
    run = small_model.small_config(
        "train.precision=bf16", f"model.vision.num_stored_attention_heads={num_stored}"
    )
    vision = run.model.vision
    config = vision_transformer_config(run, vision, "local")
    real, channels = vision.num_attention_heads, vision.head_dim
    weight = bf16(real * channels, seed=3)
    heads = bf16(65, 3, real * channels, seed=4, scale=2)
    theirs = published_norm(weight, vision.norm_epsilon)

    ours = norms.QueryKeyNorm(config, channels, vision.norm_epsilon, real, parallel.groups.tp)
    ours.weight.data.zero_()[: real * channels] = weight
    padding = torch.zeros(65, 3, (num_stored - real) * channels, dtype=torch.bfloat16)
    stored = torch.cat([heads, padding], -1).unflatten(-1, (num_stored, channels))
    summed = []
    sum_over_ranks = norms.sum_over_ranks

    def watched(value: Tensor, group) -> Tensor:
        summed.append(value.dtype)
        return sum_over_ranks(value, group)

    monkeypatch.setattr(norms, "sum_over_ranks", watched)
    found = ours(stored)
    # What the tensor-parallel ranks add up is fp32.
    assert summed == [torch.float32]
    assert found.dtype == torch.bfloat16
    assert not found[:, :, real:].any()
    expected = theirs(heads).detach()
    error = float(((found[:, :, :real].flatten(2) - expected) / expected).detach().abs().max())
    # Measured 0; summed in another order in fp32, a rounding to bf16 may fall the other way.
    what = f"QK-norm in bf16, {num_stored} stored heads, largest relative difference"
    measure(what, TRUTH, error, 2**-7)


def test_layer_scale_is_the_published_one(measure):
    """Residual + scale * (branch + bias), every operation rounded to bf16."""
    from transformers import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionLayer

    size = 160
    branch, bias = bf16(7, 3, size, seed=5), bf16(size, seed=6)
    residual = bf16(7, 3, size, seed=7, scale=8)
    first, second = bf16(size, seed=8), bf16(size, seed=9)

    class Fixed(nn.Module):
        def forward(self, hidden: Tensor):
            return branch + bias

    class FixedAttention(Fixed):
        def forward(self, hidden: Tensor):
            return super().forward(hidden), None

    published = InternVLVisionConfig(hidden_size=size, num_attention_heads=5, norm_type="rms_norm")
    layer = InternVLVisionLayer(published).to(torch.bfloat16)
    layer.attention, layer.mlp = FixedAttention(), Fixed()
    layer.lambda_1.data.copy_(first)
    layer.lambda_2.data.copy_(second)

    hidden = residual
    for weight in (first, second):
        scale = LayerScale(size, torch.bfloat16)
        scale.scale.data.copy_(weight)
        hidden = scale(training=True, fused=False)((branch, bias), hidden, 0.0)
    assert hidden.dtype == torch.bfloat16
    error = float((hidden - layer(residual)).detach().abs().max())
    measure("LayerScale in bf16, largest difference", TRUTH, error, 0)


def test_vision_encoder_is_as_exact_as_the_published_one(parallel, measure):
    """Both in bf16, against transformers in fp32."""
    run = small_model.small_config("train.precision=bf16")
    published = published_vision_model(run.model.vision)
    ours = small_model.build(run, parallel).vision_model
    with torch.no_grad():
        weights = as_megatron(published, run.model.vision, Tensor.detach)
        for name, parameter in ours.named_parameters():
            assert parameter.dtype == torch.bfloat16
            parameter.copy_(weights[name])
        generator = torch.Generator().manual_seed(1)
        tiles = torch.randint(0, 256, (3, 3, 112, 112), generator=generator, dtype=torch.uint8)
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        pixels = (tiles / 255 - mean) / deviation
        # Its weights rounded as ours are: only the arithmetic differs.
        published = published.to(torch.bfloat16).float()
        expected = published(pixels.to(torch.bfloat16).float()).last_hidden_state[:, 1:]
        theirs = published.to(torch.bfloat16)(pixels.to(torch.bfloat16)).last_hidden_state[:, 1:]
        found = ours(tiles)
    assert found.dtype == torch.bfloat16

    def error(output: Tensor) -> float:
        return float((output.float() - expected).norm() / expected.norm())

    measure(
        "InternViT in bf16, error as a multiple of that of transformers in bf16",
        "transformers InternVLVisionModel, fp32",
        error(found) / error(theirs),
        1.1,
    )


@pytest.mark.parametrize("fusion", beside_batches.FUSIONS)
def test_fused_steps_in_bf16_follow_those_in_fp32(fusion, parallel, measure):
    """Of NVLM-X and NVLM-H, from the same weights, which bf16 holds exactly."""
    runs: dict[str, tuple[list[float], dict[str, Tensor]]] = {}
    weights: dict[str, Tensor] = {}
    for precision in ("bf16", "fp32"):
        config = beside_batches.config_of(
            fusion, *TRAINING, "model.language.num_layers=4", f"train.precision={precision}"
        )
        chunks = small_model.build_chunks(config, parallel)
        with torch.no_grad():
            for name, parameter in named_parameters(chunks):
                parameter.copy_(weights.setdefault(name, parameter.detach().to(torch.bfloat16)))
        training = Training(config, parallel, chunks)
        rows = layout_steps.with_rows_beside(config)
        losses = [
            training.take_step(StepBatch(rows, [], {})).result.loss,
        ]
        # What the step has left in the buffers: sums over the micro-batches, in fp32.
        gradients = {name: p.main_grad.clone() for name, p in named_parameters(chunks)}
        losses += [training.take_step(StepBatch(rows, [], {})).result.loss for _ in range(2)]
        runs[precision] = losses, gradients
    (half, found), (whole, expected) = runs["bf16"], runs["fp32"]
    assert whole[2] < whole[0]
    worst = max(abs(a - b) / b for a, b in zip(half, whole, strict=True))
    measure(f"losses of 3 steps in bf16, {fusion}", "fp32", worst, 1e-3)
    errors = {
        name: float((found[name] - expected[name]).norm() / expected[name].norm())
        for name in expected
    }
    assert any("cross_attn_bda.gate" in name for name in errors)
    measure(f"gradients in bf16, {fusion}, worst tensor", "fp32", max(errors.values()), 0.1)


class Run:
    """A training on the same two micro-batches."""

    def __init__(self, parallel, *overrides: str):
        from nvlm.train.training import build_with_weights

        self.config = small_model.small_config(*TRAINING, *overrides)
        (self.model,) = chunks = build_with_weights(self.config, parallel, None)
        self.training = Training(self.config, parallel, chunks)

    def train(self, num_steps: int = 1) -> list[float]:
        losses = []
        for _ in range(num_steps):
            micro_batches = [
                small_model.batch(self.config, 1, [60, 20], num_tiles=2),
                small_model.batch(self.config, 2, [30, 50], num_tiles=0),
            ]
            taken = self.training.take_step(StepBatch(micro_batches, [], {}))
            losses.append(taken.result.loss)
        return losses

    def states(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> `param` (its main copy) and Adam's moments, as the optimizer holds."""
        optimizer = self.training.optimizer
        inner = getattr(optimizer, "chained_optimizers", [optimizer])[0]
        return {
            name: {
                key: tensor.detach().clone()
                for key, tensor in inner._get_main_param_and_optimizer_states(parameter).items()
            }
            for name, parameter in named_parameters([self.model])
        }

    def parameters(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in named_parameters([self.model])}


def test_main_parameters_gradients_and_moments_are_fp32(parallel: ProcessGroupCollection):
    run = Run(parallel)
    losses = run.train(3)
    assert losses[2] < losses[0]
    states = run.states()
    for name, parameter in named_parameters([run.model]):
        assert parameter.dtype == torch.bfloat16, name
        assert parameter.main_grad.dtype == torch.float32, name
        assert {tensor.dtype for tensor in states[name].values()} == {torch.float32}, name
        assert states[name].keys() == {"param", "exp_avg", "exp_avg_sq"}
        main = states[name]["param"].view_as(parameter)
        assert torch.equal(parameter, main.to(torch.bfloat16)), name


def test_updates_below_bf16_resolution_add_up(parallel):
    run = Run(parallel)
    weights = [name for name, weight in run.parameters().items() if bool((weight == 1).all())]
    assert any("input_layernorm" in name for name in weights)

    run.train(1)
    main, rounded = run.states(), run.parameters()
    for name in weights:
        moved = main[name]["param"] - 1
        assert moved.abs().max() == pytest.approx(5e-4, rel=1e-2), name
        # The model's own parameter cannot show it yet: below 1 the next number is 1 - 2^-8.
        assert bool((rounded[name] == 1).all()), name

    run.train(5)
    main, rounded = run.states(), run.parameters()
    num_crossed = 0
    for name in weights:
        assert torch.equal(rounded[name], main[name]["param"].to(torch.bfloat16)), name
        num_crossed += int((rounded[name] != 1).sum())
    assert num_crossed > 100


def test_gradients_of_micro_batches_are_summed_in_fp32(parallel, measure):
    """As each micro-batch's own gradients, added up here."""
    run = Run(parallel)
    micro_batches = [
        small_model.batch(run.config, seed, [60, 20], num_tiles=1) for seed in range(1, 5)
    ]
    found = mean_loss_gradients(run.training.chunks, micro_batches)
    parts = [
        mean_loss_gradients(run.training.chunks, [micro_batch]) for micro_batch in micro_batches
    ]
    shares = torch.tensor([float(micro_batch.loss_mask().sum()) for micro_batch in micro_batches])
    shares /= shares.sum()
    worst = in_bf16 = 0.0
    for name, gradient in found.items():
        expected = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        worst = max(worst, float((gradient - expected).norm() / expected.norm()))
        rounded = torch.zeros_like(gradient, dtype=torch.bfloat16)
        for share, part in zip(shares, parts, strict=True):
            rounded += share * part[name].to(torch.bfloat16)
        in_bf16 = max(in_bf16, float((rounded - expected).norm() / expected.norm()))
    assert in_bf16 > 1e-3
    measure("gradients of 4 micro-batches, bf16 model", "their sum in fp32", worst, 1e-6)


def test_a_checkpoint_resumes_bit_equal(parallel, tmp_path):
    run = Run(parallel, f"run.dir={tmp_path}")
    run.train(2)
    saved = run.training.save()
    again = Run(parallel, f"run.dir={tmp_path}", "train.seed=77")
    again.training.load(saved)
    for _ in range(2):
        states, expected = again.states(), run.states()
        assert states.keys() == expected.keys()
        for name, tensors in expected.items():
            assert all(torch.equal(states[name][key], tensors[key]) for key in tensors), name
        parameters = again.parameters()
        assert all(torch.equal(parameters[name], p) for name, p in run.parameters().items())
        # Main parameters carry more than the model's: reading them back from bf16 would lose it.
        assert any(
            not torch.equal(t["param"], t["param"].to(torch.bfloat16).float())
            for t in states.values()
        )
        assert again.train() == run.train()
