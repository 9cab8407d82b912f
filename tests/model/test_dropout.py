"""Dropout of the decoder: against transformers, and what tensor ranks zero alike and apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import dropout_steps, layout_runs, layout_steps, published_models, small_model
from helpers.dropout_steps import ATTENTION, DIRECTIONS, HIDDEN, SHARE
from helpers.layout_runs import Layouts, short_and_long
from torch import Tensor
from torch.nn import functional

from nvlm.model.parts.dropout import begin_step

NUM_PROCESSES = 2
LAYOUTS = {"TP2 + SP": ["parallel.tensor=2", "parallel.sequence=true"]}
LONG_LAYOUTS = {
    "TP2": ["parallel.tensor=2"],
    "DP2": [],
    "PP2": ["parallel.pipeline=2"],
    "CP2": ["parallel.context=2"],
}
EVERY_LAYOUT = short_and_long(["one process", *LAYOUTS], LONG_LAYOUTS)


@pytest.mark.parametrize("kind, setting", [("hidden", HIDDEN), ("attention", ATTENTION)])
def test_equals_transformers_with_the_same_numbers(kind, setting, parallel, measure):
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    config = small_model.small_config(setting)
    language = config.model.language
    published = published_models.random_language_model(language).train()
    model = small_model.build(config, parallel)
    published_models.copy_weights(published, model.language_model, language)
    micro_batch = small_model.batch(config, 0, [50], num_tiles=0)
    begin_step(config, parallel, 1)
    state = torch.get_rng_state()
    if kind == "attention":
        state = get_cuda_rng_tracker().get_states()["model-parallel-rng"]
    losses = model(micro_batch)

    torch.set_rng_state(state)
    if kind == "attention":
        for layer in published.model.layers:
            layer.self_attn.attention_dropout = SHARE
    else:
        _drop_outputs(published)
    logits = published(micro_batch.tokens).logits[0]
    expected = functional.cross_entropy(logits, micro_batch.labels[0], reduction="none")
    error = float((losses[0] - expected).abs().max())
    truth = "transformers Qwen2ForCausalLM"
    measure(f"losses with {kind} dropout, largest difference", truth, error, 1e-4)
    begin_step(config, parallel, 2)
    assert float((losses - model(micro_batch)).abs().max()) > 0.1

    losses.sum().backward()
    expected.sum().backward()
    worst = published_models.worst_gradient(published, model.language_model, language)
    measure(f"gradients with {kind} dropout, worst tensor", truth, worst, 1e-5)


def _drop_outputs(published) -> None:
    """Of the embeddings, and of each attention and MLP, as T5 and GPT have it."""

    def dropped(_module, _inputs, output):
        if isinstance(output, tuple):
            return functional.dropout(output[0], SHARE), *output[1:]
        return functional.dropout(output, SHARE)

    published.model.embed_tokens.register_forward_hook(dropped)
    for layer in published.model.layers:
        layer.self_attn.register_forward_hook(dropped)
        layer.mlp.register_forward_hook(dropped)


@pytest.mark.parametrize("fusion", ["decoder_only", "cross_attention"])
def test_nothing_is_dropped_outside_of_training(fusion, parallel):
    """And no number is drawn, so that validation leaves the training's alone."""
    from helpers import beside_batches

    if fusion == "decoder_only":
        make = small_model.small_config
        micro_batch = small_model.batch(make(), 0, [60, 20], num_tiles=2)
    else:
        make = lambda *overrides: beside_batches.config_of(fusion, *overrides)  # noqa: E731
        micro_batch = layout_steps.with_rows_beside(make())[0]
    with_dropout, without = (
        small_model.build(make(*overrides), parallel) for overrides in ([HIDDEN, ATTENTION], [])
    )
    expected = without(micro_batch)
    begin_step(make(HIDDEN, ATTENTION), parallel, 1)
    assert float((with_dropout(micro_batch) - expected).abs().max()) > 0.1
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(with_dropout.eval()(micro_batch), expected)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def single(parallel, tmp_path_factory) -> dict:
    return dropout_steps.all_cases([], tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def results_of(single, tmp_path_factory) -> Callable[[str], list[dict]]:
    """Layout -> the results of each rank."""
    folder, jobs = (
        tmp_path_factory.mktemp("dropout"),
        (Layouts(LAYOUTS, []), Layouts(LONG_LAYOUTS, [])),
    )
    read = layout_runs.reader(dropout_steps.__file__, NUM_PROCESSES, folder, *jobs)
    return lambda layout: [single] if layout == "one process" else read(layout)


def zeroed(result: dict) -> list[Tensor]:
    """Of each micro-batch, where what enters the first layer is zero."""
    return [hidden == 0 for hidden in result["seen"]["entering"]]


def test_share_that_is_zeroed(single):
    shares = torch.cat([zeros.flatten() for zeros in zeroed(single)]).float()
    assert abs(float(shares.mean()) - SHARE) < 0.02
    heads = single["heads"]
    # All weights were alike, and those that are left are larger: their sum is 1 on the average.
    assert abs(float(heads[5:].mean()) - 1) < 0.05 and float(heads[5:].std()) > 0.05


@pytest.mark.slow
@pytest.mark.parallel
def test_tensor_ranks_zero_alike_what_they_have_alike(single, results_of, measure):
    first, second = results_of("TP2")
    for ours, theirs in zip(zeroed(first), zeroed(second), strict=True):
        assert torch.equal(ours, theirs)
    # The default stream is that of one process: so is all of the step.
    found = layout_steps.assemble([first["hidden"], second["hidden"]])
    expected = layout_steps.assemble([single["hidden"]])
    worst = max(
        float((found[key] - gradient).norm() / gradient.norm())
        for key, gradient in expected.items()
    )
    measure("gradients with hidden dropout, worst tensor, TP2", "one process", worst, 1e-5)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, ["TP2", "DP2", "PP2"]))
def test_ranks_zero_attention_apart(layout, results_of):
    first, second = (result["heads"] for result in results_of(layout))
    assert not torch.equal(first, second)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", short_and_long(LAYOUTS, ["DP2", "CP2"]))
def test_ranks_zero_apart_what_each_has_a_part_of(layout, results_of):
    first, second = (zeroed(result)[0] for result in results_of(layout))
    shared = min(len(first), len(second))
    agree = (first[:shared] == second[:shared]).float().mean()
    # Of independent draws.
    assert abs(float(agree) - (SHARE**2 + (1 - SHARE) ** 2)) < 0.03


@pytest.mark.parallel
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", EVERY_LAYOUT)
def test_gradients_are_those_of_what_was_drawn(layout, direction, results_of, measure):
    """The slope of the loss along its gradient is the gradient's square, for the same zeros.

    Zeros that are others on the way back, on some rank or in a recomputed pass, make it another.
    """
    results = results_of(layout)
    batches = dropout_steps.micro_batches(dropout_steps.config_of())
    along = [result["along"][direction] for result in results]
    both = [result["both"] for result in results]
    error = slope_error(both, along, DIRECTIONS[direction], batches)
    what = f"slope along the gradient of {direction} with dropout, {layout}, relative"
    measure(what, "differences of losses", error, 0.01)


def slope_error(both: list[dict], along: list[dict], part: str, batches: list) -> float:
    """Of the slope that the ranks' losses have, relative to the square of their gradients."""
    square = sum(
        float(gradient.double().square().sum())
        for (key, _), gradient in layout_steps.assemble(both).items()
        if all(piece in key for piece in part.split("*"))
    )
    num_trained = sum(int(batch.loss_mask().sum()) for batch in batches)
    totals = dict.fromkeys((1, -1), 0.0)
    for sign in totals:
        losses: dict[int, Tensor] = {}
        for one in along:
            losses.update(one["losses"][sign])
        assert len(losses) == len(batches)
        totals[sign] = sum(float(loss.double().sum()) for loss in losses.values()) / num_trained
    slope = (totals[1] - totals[-1]) / (2 * along[0]["distance"])
    return abs(slope / square - 1)


def test_cross_attention_has_the_gradients_of_what_was_drawn(parallel, measure):
    """Its gates, and its matrices, also where its core is computed again."""
    from helpers import beside_batches

    plain, selective = (
        beside_batches.config_of("cross_attention", "stage.freeze=[]", HIDDEN, ATTENTION, *more)
        for more in ([], [dropout_steps.SELECTIVE])
    )
    chunks = dropout_steps.wrapped(plain, parallel)
    both = dropout_steps.step(chunks, plain, parallel)
    part = "cross_att"
    # Its gradients are small, and the loss bends on a longer way.
    along = dropout_steps.losses_along(chunks, plain, parallel, part, moved=0.001)
    error = slope_error([both], [along], part, dropout_steps.micro_batches(plain))
    what = "slope along the gradient of cross-attention with dropout, relative"
    measure(what, "differences of losses", error, 0.01)
    again = dropout_steps.step(dropout_steps.wrapped(selective, parallel), selective, parallel)
    found, expected = layout_steps.assemble([again]), layout_steps.assemble([both])
    worst = max(float((found[k] - g).norm() / g.norm()) for k, g in expected.items())
    what = "gradients of NVLM-X with dropout, selective recomputation, worst tensor"
    measure(what, "without recomputation", worst, 1e-6)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", EVERY_LAYOUT)
def test_recomputed_passes_draw_the_same(layout, results_of, measure):
    results = results_of(layout)
    expected = layout_steps.assemble([result["both"] for result in results])
    for setting in ("full", "selective"):
        found = layout_steps.assemble([result["recomputed"][setting] for result in results])
        worst = max(
            float((found[key] - gradient).norm() / gradient.norm())
            for key, gradient in expected.items()
        )
        what = f"gradients with dropout, {setting} recomputation, {layout}, worst tensor"
        measure(what, "without recomputation", worst, 1e-6)


@pytest.mark.parallel
@pytest.mark.parametrize("layout", EVERY_LAYOUT)
def test_a_resumed_step_is_bit_equal(layout, results_of):
    for result in results_of(layout):
        in_one_go, again = (result["resumed"][name] for name in ("in one go", "from a checkpoint"))
        assert torch.equal(again["losses"][2], in_one_go["losses"][2])
        ours, theirs = (
            {(key, layer): values for key, layer, _, _, values in part["tensors"]}
            for part in (again, in_one_go)
        )
        assert ours.keys() == theirs.keys() and len(ours) > 10
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
