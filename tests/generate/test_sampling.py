"""Draws follow the distribution that transformers' processors leave of the logits."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from nvlm.generate.request import Sampling
from nvlm.generate.sampling import Drawing, choose_tokens, drawn, probabilities

SETTINGS = [
    (1.0, 1.0, 0),
    (0.3, 1.0, 0),
    (2.5, 0.7, 0),
    (0.8, 0.95, 20),
    (1.0, 1.0, 3),
    (1.3, 0.4, 7),
    (0.7, 0.05, 0),  # less than the likeliest token has: it stays
    (1e-30, 0.9, 0),
]


def logits_of_rows(count: int, vocabulary: int = 500) -> torch.Tensor:
    return 3 * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(5))


def by_transformers(logits, temperature: float, top_p: float, top_k: int) -> torch.Tensor:
    """[b, v] float64: softmax of what its warpers leave, in the order in which `generate` has
    them."""
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    return scores.softmax(-1).double()


@pytest.mark.parametrize("temperature, top_p, top_k", SETTINGS)
def test_probabilities_are_those_of_transformers(temperature, top_p, top_k, measure):
    logits = logits_of_rows(40)
    # transformers' own overflow at the smallest temperatures: its argmax is what is meant.
    if temperature < 1e-20:
        expected = torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    else:
        expected = by_transformers(logits, temperature, top_p, top_k)
    rows = torch.tensor([[temperature, top_p, top_k or logits.shape[-1]]] * 40).double()
    found = probabilities(logits, *rows.unbind(-1))
    # The same tokens stay, not only nearly.
    assert torch.equal(found > 0, expected > 0)
    error = float((found - expected).abs().max())
    against = "transformers' temperature, top-k and top-p"
    measure(f"probabilities at {temperature:g}, {top_p:g}, {top_k}", against, error, 1e-6)


@pytest.mark.parametrize("temperature, top_p, top_k", SETTINGS[:6])
def test_draws_have_these_frequencies(temperature, top_p, top_k):
    """Of 8,000 seeds: each token as often as its probability says, within 5 deviations."""
    count = 8_000
    logits = logits_of_rows(1, 60)
    expected = by_transformers(logits, temperature, top_p, top_k)[0]
    drawings = [
        Drawing(Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed))
        for seed in range(count)
    ]
    chosen = choose_tokens(logits.expand(count, -1), drawings)
    found = chosen.bincount(minlength=60).double()
    assert found[expected == 0].sum() == 0
    deviation = (count * expected * (1 - expected)).sqrt()
    assert ((found - count * expected).abs() <= 5 * deviation + 1e-9).all()


def test_a_row_does_not_depend_on_the_others():
    logits = logits_of_rows(30)
    settings = [
        Sampling(temperature=(i % 4) / 2, top_p=1 - (i % 3) / 4, top_k=i % 5, seed=i)
        for i in range(30)
    ]
    together = choose_tokens(logits, [Drawing(s) for s in settings]).tolist()
    one_by_one = [int(choose_tokens(logits[i : i + 1], [Drawing(settings[i])])) for i in range(30)]
    assert together == one_by_one
    greedy = [i for i in range(30) if settings[i].temperature == 0]
    assert [together[i] for i in greedy] == logits.argmax(-1)[greedy].tolist()
    assert together != logits.argmax(-1).tolist()


def test_a_question_draws_another_number_each_time():
    one, same, other = (Drawing(Sampling(seed=seed)) for seed in (7, 7, 8))
    draws = [one.next() for _ in range(5)]
    assert draws == [same.next() for _ in range(5)] and len(set(draws)) == 5
    assert other.next() not in draws


def test_the_ends_of_the_range_are_tokens_that_may_come():
    shares = torch.tensor([[0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
    almost_one = math.nextafter(1.0, 0.0)
    for draw, token in ((0.0, 1), (0.29, 1), (0.31, 3), (almost_one, 3)):
        assert drawn(shares, torch.tensor([draw], dtype=torch.float64)).tolist() == [token]
