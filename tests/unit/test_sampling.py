"""Sampling: filters, penalties, noise."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch

from orthrus.config import SamplingParams
from orthrus.decoding.argmax import best
from orthrus.decoding.filters import filter_scores
from orthrus.decoding.noise import AddressedNoise, Purpose, draw_seed
from orthrus.decoding.rules import Check, Proposal, exact, rejection
from orthrus.decoding.sampling import RowRequest, Sampler
from orthrus.decoding.sampling import targets as targets_of_rows
from orthrus.decoding.sequence import Limits
from orthrus.drafters.tree import DraftTree

LOGITS = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0, -1.0])


def kept(params, scores=LOGITS):
    return torch.isfinite(filter_scores(scores[None].clone(), params))[0].nonzero().flatten().tolist()


class Silent:
    """Noise of zero: sampling becomes the argmax of the filtered scores."""

    random = None

    def gumbel(self, position, vocab_size):
        del position
        return torch.zeros(vocab_size)

    def gumbel_of(self, position, tokens):
        del position
        return np.zeros(len(tokens), np.float32)


def sampler(prompt=(), ends=frozenset(), vocab=6, **params):
    return Sampler(SamplingParams(**params), Silent(), prompt, ends, vocab)


def targets(made, rows, position, drafts=()):
    """The tokens of rows that assume the drafts before them. The sampler does not advance."""
    paths = [drafts[:row] for row in range(len(rows))] if drafts else [()] * len(rows)
    (target,) = targets_of_rows([RowRequest(made, rows, position, paths)])
    return [target(row) for row in range(len(rows))]


def test_filters_keep_the_tokens_of_their_definitions():
    probabilities = LOGITS.softmax(0).tolist()
    assert kept(SamplingParams(temperature=1, top_k=2)) == [0, 1]
    assert kept(SamplingParams(temperature=1, top_k=99)) == [0, 1, 2, 3, 4, 5]
    assert kept(SamplingParams(temperature=1, top_p=probabilities[0] - 0.01)) == [0]
    assert kept(SamplingParams(temperature=1, top_p=probabilities[0] + 0.01)) == [0, 1]
    assert kept(SamplingParams(temperature=1, top_p=1e-9)) == [0]
    assert kept(SamplingParams(temperature=1, min_p=math.exp(-2.5))) == [0, 1, 2]


def test_top_p_with_more_tokens_than_the_first_search_covers():
    flat = torch.zeros(5000) - torch.arange(5000) * 1e-6
    assert len(kept(SamplingParams(temperature=1, top_p=0.5), flat)) == pytest.approx(2500, abs=10)


def test_penalties_follow_their_definitions():
    made = sampler(prompt=[0], repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    rows = torch.stack([LOGITS] * 3)
    # token 0 was in the prompt, 4 / 2 = 2, so 1 wins with 3; then 1 has 3 / 2 - 0.75, and 0 and 2 tie at 2; then 0 has
    # 4 / 2 - 0.75, so 2 wins
    assert targets(made, rows, 1, [1, 0]) == [1, 0, 2]


def test_a_token_that_the_drafts_repeat_counts_as_often_as_it_occurs():
    """The third row assumes two drafts of token 0: 4 - 2 * 1.5 is below 3 - 1.5, and 2 is what is left."""
    made, rows = sampler(frequency_penalty=1.5), torch.stack([LOGITS] * 4)
    drafts = [0, 0, 1]
    ahead = targets(made, rows, 0, drafts)
    assert ahead == [0, 1, 1, 2]
    for row, token in enumerate(drafts):
        assert targets(made, rows[:1], row) == ahead[row : row + 1]
        made.advance([token])
    assert targets(made, rows[:1], 3) == ahead[3:]


def test_end_tokens_are_forbidden_below_the_minimum_length():
    made = sampler(ends=frozenset([0]), min_new_tokens=2)
    assert targets(made, torch.stack([LOGITS] * 3), 0, [1, 1]) == [1, 1, 0]


def test_logit_bias_moves_a_token():
    assert targets(sampler(logit_bias=((5, 9.0),)), LOGITS[None], 0) == [5]
    with pytest.raises(ValueError, match="vocabulary ends at 5"):
        sampler(logit_bias=((6, 1.0),))


def test_state_advances_only_by_tokens_that_are_kept():
    made = sampler(frequency_penalty=2.0)
    rows = torch.stack([LOGITS] * 4)
    assert targets(made, rows, 0, [0, 1, 2])[:3] == targets(made, rows, 0, [0, 1, 2])[:3] == [0, 1, 0]
    (verdict,) = exact.verify([Check(made, rows, DraftTree.chain([5, 1, 2]), 0)])
    assert (verdict.tokens, verdict.accepted) == ([0], 0)
    assert targets(made, rows[:2], 1, [1]) == [1, 0]


def test_a_tie_goes_to_the_lowest_id_in_every_shape():
    tied = torch.zeros(40, 320, dtype=torch.bfloat16)
    assert targets(sampler(vocab=320), tied, 0) == [0] * 40


def test_noise_is_a_function_of_its_address():
    noise = AddressedNoise(7)
    far, near = noise.gumbel(5000, 320), noise.gumbel(3, 320)
    assert torch.equal(AddressedNoise(7).gumbel(5000, 320), far)
    assert torch.equal(AddressedNoise(7).gumbel(3, 320), near)
    others = [
        near,
        far,
        AddressedNoise(7).gumbel(3 + 64, 320),
        AddressedNoise(7).gumbel(3 + 2**32, 320),
        AddressedNoise(8).gumbel(3, 320),
        AddressedNoise(7, 1).gumbel(3, 320),
    ]
    assert not any(torch.equal(a, b) for a, b in pairwise(others))
    assert AddressedNoise(2**64 - 1, 2**32 - 1).gumbel(2**40, 320).isfinite().all()


def test_noise_is_gumbel_distributed():
    values = torch.cat([AddressedNoise(seed).gumbel(0, 50_000) for seed in range(4)])
    assert values.mean() == pytest.approx(0.57722, abs=0.02)
    assert values.var() == pytest.approx(math.pi**2 / 6, abs=0.05)


def test_sampling_follows_the_distribution():
    counts = torch.zeros(6)
    for seed in range(4000):
        made = Sampler(SamplingParams(temperature=1.0), AddressedNoise(seed), (), frozenset(), 6)
        counts[targets(made, LOGITS[None], 11)] += 1
    expected = LOGITS.softmax(0)
    error = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts / 4000 - expected).abs() < 4 * error + 1e-3).all()


def test_drafts_share_the_noise_of_their_targets():
    params = SamplingParams(temperature=1.0, seed=3)
    rows = torch.randn(5, tiny.VOCAB)
    first, second = (Sampler(params, AddressedNoise(3), (), frozenset(), tiny.VOCAB) for _ in range(2))
    (draft,) = exact.propose([Proposal(first, rows[:4], 40, 0, [1.0] * 4)])
    assert draft.tokens == targets(second, rows, 40, draft.tokens)[:4]
    (verdict,) = exact.verify([Check(second, rows, draft, 40)])
    assert verdict.accepted == 4


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1}, {"temperature": float("nan")}, {"temperature": float("inf")}, {"top_p": 0.0},
        {"top_p": 1.5}, {"min_p": -1}, {"top_k": -1}, {"repetition_penalty": 0.0}, {"presence_penalty": 9.0},
        {"seed": -1}, {"seed": 2**64}, {"logit_bias": ((1, float("nan")),)}, {"min_new_tokens": -1},
        {"logit_bias": ((1, 1e39),)}, {"logit_bias": ((1, -1e7),)}, {"repetition_penalty": 1e-44},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_values_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 1e-20, 1e-9, 1e-6, 2e-5, 1e-4])
@pytest.mark.parametrize("bias", [(), ((3, -1e6), (0, 1e6))])
def test_small_temperatures_approach_greedy(temperature, bias):
    rows = torch.randn(20, tiny.VOCAB, generator=torch.Generator().manual_seed(0)) * 5
    greedy = Sampler(SamplingParams(logit_bias=bias), AddressedNoise(1), (), frozenset(), tiny.VOCAB)
    expected = targets(greedy, rows, 4)
    params = SamplingParams(temperature=temperature, logit_bias=bias, seed=1)
    assert targets(Sampler(params, AddressedNoise(1), (), frozenset(), tiny.VOCAB), rows, 4) == expected
    made = Sampler(params, AddressedNoise(1), (), frozenset(), tiny.VOCAB)
    for n, row in enumerate(rows):
        (verdict,) = rejection.verify([Check(made, row[None], DraftTree(), 4 + n)])
        assert verdict.tokens == expected[n : n + 1]


def test_an_end_token_beyond_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="end token 320 is outside the vocabulary of 320"):
        Limits(320, 64, frozenset([3, 320]))


def test_rejection_uses_a_different_address_for_every_decision():
    addresses = []

    class Spy(Silent):
        def uniform(self, position, purpose, block=0, node=0):
            addresses.append((position, purpose, block, node))
            return 0.5

    made = Sampler(SamplingParams(temperature=1.0), Spy(), (), frozenset(), 6)
    rows = torch.stack([LOGITS] * 3)
    _, draft = rejection.propose([Proposal(made, rows[:2], 7, 6, [1.0] * 2), Proposal(made, rows[:2], 8, 7, [1.0] * 2)])
    rejection.verify([Check(made, rows, draft, 8)])
    drafted = [(7, 6, 0), (8, 6, 1), (8, 7, 0), (9, 7, 1)]
    assert addresses[:4] == [(position, Purpose.DRAFT, *rest) for position, *rest in drafted]
    decided = [(8, Purpose.ACCEPT), (9, Purpose.ACCEPT), (10, Purpose.TOKEN)]
    assert addresses[4:] == [(position, purpose, 0, 0) for position, purpose in decided]
    assert len({AddressedNoise(1).uniform(*address) for address in addresses}) == len(addresses)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_argmax_ties_go_to_the_lowest_id_for_all_signs_and_other_rows(dtype):
    rows = torch.randn(6, 4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[1] = -rows[1].abs() - 1  # none is positive
    rows[2, [7, 90]] = 9.0
    rows[3] = 0
    expected = rows.float().argmax(dim=-1).tolist()
    assert expected[2:4] == [7, 0]
    assert best(rows) == expected
    assert [best(row[None])[0] for row in rows] == expected


def test_a_drawn_seed_is_exact_where_numbers_are_doubles():
    """As JavaScript reads them from JSON."""
    seeds = {draw_seed() for _ in range(200)}
    assert len(seeds) == 200
    assert all(seed == int(float(seed)) for seed in seeds)
