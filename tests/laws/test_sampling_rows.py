"""Law 6 for sampling: the result of a row does not depend on the other rows of the call.

The reference implementation is separate: one row at a time, on the host, each after the token before it was kept.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from orthrus import gumbel
from orthrus.backends.native import kernels as native
from orthrus.backends.native import sampling as native_sampling
from orthrus.config import SamplingParams
from orthrus.decoding.filters import top_p_border_by_row, top_p_border_by_sort
from orthrus.decoding.noise import AddressedNoise
from orthrus.decoding.rules import Check, Proposal, exact, rejection
from orthrus.decoding.sampling import RowRequest, Sampler, distributions, targets
from orthrus.drafters.tree import DraftTree
from orthrus.file_cache import cache_directory
from orthrus.gumbel import LOUD, LOUD_BITS, NEAR

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = [320, 1023, 4097, 49152, 49157]
PROMPT, ENDS = (3, 5, 5, 7, 11), frozenset([2, 9])
TEMPERATURES = [{"temperature": value} for value in (0.8, 0.3, 2.0, 0.0)]
FILTERS = [
    {}, {"top_p": 0.95}, {"top_k": 20}, {"min_p": 0.05}, {"top_k": 1}, {"top_p": 0.9999}, {"top_k": 300, "top_p": 0.5},
    {"top_p": 0.9, "min_p": 0.2}, {"top_k": 50, "top_p": 0.99, "min_p": 0.01}, {"top_p": 1e-6},
]  # fmt: skip
PROCESSORS = [
    {},
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.7, "presence_penalty": -0.4},
    {"repetition_penalty": 0.9, "presence_penalty": 0.3, "logit_bias": ((4, 2.5), (7, -1.0), (4, 3.5))},
    {"min_new_tokens": 3, "logit_bias": ((2, 8.0),)},
]
SETTINGS = [SamplingParams(**a, **b, **c) for a, b, c in itertools.product(TEMPERATURES, FILTERS, PROCESSORS)]


class RowByRow:
    """The reference implementation of sampling, one row at a time."""

    def __init__(self, params, noise, prompt, ends, vocab_size):
        self.params, self.noise, self.generated = params, noise, 0
        self.ends = torch.tensor(sorted(ends))
        self.bias_ids = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.long)
        self.bias = torch.tensor([bias for _, bias in params.logit_bias])
        self.seen, self.counts = torch.zeros(vocab_size, dtype=torch.bool), torch.zeros(vocab_size)
        self.seen[list(prompt)] = True

    def token(self, logits_V, position):
        scores_V = self.adjusted(logits_V)
        if self.params.greedy:
            return int(scores_V.numpy().argmax())
        filtered_V = filtered(scores_V / self.params.temperature, self.params)
        return int((filtered_V + self.noise.gumbel(position, len(scores_V))).numpy().argmax())

    def probabilities(self, logits_V):
        return filtered(self.adjusted(logits_V) / self.params.temperature, self.params).softmax(dim=-1)

    def keep(self, token):
        self.generated += 1
        self.seen[token] = True
        self.counts[token] += 1

    def adjusted(self, logits_V):
        params, scores = self.params, logits_V.float().clone()
        if params.repetition_penalty != 1.0:
            factor = torch.where(scores > 0, 1 / params.repetition_penalty, params.repetition_penalty)
            scores = torch.where(self.seen, scores * factor, scores)
        if params.penalised:
            scores -= params.frequency_penalty * self.counts
            scores -= params.presence_penalty * (self.counts > 0)
        scores[self.bias_ids] += self.bias
        if self.generated < params.min_new_tokens:
            scores[self.ends] = float("-inf")
        return scores


def filtered(scores_V, params):
    if 0 < params.top_k < len(scores_V):
        threshold = scores_V.topk(params.top_k).values[-1]
        scores_V = scores_V.masked_fill(scores_V < threshold, float("-inf"))
    if params.top_p < 1.0:
        scores_V = scores_V.masked_fill(scores_V < top_p_threshold(scores_V, params.top_p), float("-inf"))
    if params.min_p > 0.0:
        p_V = scores_V.softmax(dim=-1)
        scores_V = scores_V.masked_fill(p_V < params.min_p * p_V.max(), float("-inf"))
    return scores_V


def top_p_threshold(scores_V, top_p):
    total, scores = float(scores_V.double().logsumexp(dim=-1).float()), scores_V.numpy()
    for share in (64, len(scores_V)):
        likely = scores[scores >= total + math.log((1 - top_p) / share)]
        largest = torch.from_numpy(np.sort(likely)[::-1].copy())
        inside = (largest - total).exp().double().cumsum(dim=-1) < top_p
        if not inside.all():
            return largest[int(inside.sum())]
    return scores_V.min()


def logits_of(rows, vocab, seed=0, dtype=torch.bfloat16):
    """Random rows, peaked and flat like those of a model, with ties in bf16."""
    noise = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    return (noise * torch.tensor([1.0, 2.5, 4.0]).repeat(rows)[:rows, None]).to(dtype)


def made(params, vocab, seed=1):
    return tuple(kind(params, AddressedNoise(seed), PROMPT, ENDS, vocab) for kind in (Sampler, RowByRow))


def check(params, logits_RV):
    """Tokens of a block, of drafts and of single rows, and distributions, equal those of the reference."""
    vocab = logits_RV.shape[1]
    sampler, reference = made(params, vocab)
    for token in (8, 5):
        sampler.advance([token])
        reference.keep(token)
    alone = [reference.token(row, 20 + n) for n, row in enumerate(logits_RV)]
    (draft,) = exact.propose([Proposal(sampler, logits_RV, 20, 0, [1.0] * len(logits_RV))])
    assert draft.tokens == alone
    q = [] if params.greedy else [reference.probabilities(row) for row in logits_RV]
    found = distributions_of(RowRequest(sampler, logits_RV, 20, [()] * len(logits_RV))) if q else []
    assert all(bits(one, other) for one, other in zip(found, q, strict=True))
    expected, p = [], []
    for n, row in enumerate(logits_RV):
        p += [] if params.greedy else [reference.probabilities(row)]
        expected.append(reference.token(row, 20 + n))
        reference.keep(expected[-1])
    draft = DraftTree.chain(expected[:-1])
    found = distributions_of(RowRequest(sampler, logits_RV, 20, draft.paths)) if p else []
    assert all(bits(one, other) for one, other in zip(found, p, strict=True))
    (verdict,) = exact.verify([Check(sampler, logits_RV, draft, 20)])
    assert verdict.tokens == expected
    assert verdict.accepted == len(logits_RV) - 1


def rows_of(found, request):
    return [found(row) for row in range(len(request.logits_RV))]


def distributions_of(request):
    (found,) = distributions([request])
    return rows_of(found, request)


def targets_of(requests):
    return [rows_of(found, request) for found, request in zip(targets(requests), requests, strict=True)]


def bits(one, other):
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("processors", range(len(PROCESSORS)))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_block_equals_its_rows_one_at_a_time(dtype, processors):
    for n, params in enumerate(SETTINGS[processors :: len(PROCESSORS)]):
        check(params, logits_of(1 + n % 9, 320, n, dtype))


@pytest.mark.parametrize("vocab", SIZES[1:])
def test_a_block_equals_its_rows_in_large_and_odd_vocabularies(vocab):
    for n, filters in enumerate(FILTERS):
        check(SamplingParams(temperature=0.8, **filters, **PROCESSORS[n % 5]), logits_of(1 + (n + vocab) % 9, vocab, n))


def test_a_block_equals_its_rows_where_logits_are_not_finite():
    rows = logits_of(9, 320, dtype=torch.float32)
    rows[0], rows[1, :200], rows[2, 5], rows[3, 7], rows[4] = 0.0, -math.inf, math.inf, math.nan, math.nan
    rows[5, 1:], rows[6], rows[7, [3, 70, 200]] = -math.inf, 1.5, 30.0
    for filters in FILTERS:
        params = SamplingParams(temperature=0.8, **filters)
        sampler, reference = made(params, 320)
        alone = [RowRequest(sampler, row[None], n) for n, row in enumerate(rows)]
        assert targets_of(alone) == [[reference.token(row, n)] for n, row in enumerate(rows)]
        for one, row in zip(distributions_of(RowRequest(sampler, rows, 0, [()] * 9)), rows, strict=True):
            assert torch.equal(one.nan_to_num(2.0), reference.probabilities(row).nan_to_num(2.0))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab", [320, 1023, 49157])
def test_a_batch_equals_its_sequences_alone(device, vocab):
    """Sequences of every setting in one call, as slices of one tensor and as tensors of their own."""
    settings = SETTINGS[:: 1 if vocab == 320 else 17]
    counts = [1 + n % 4 for n in range(len(settings))]
    block = logits_of(sum(counts), vocab).to(device)
    drafts = [
        DraftTree.tree(*zip(*((5 + n, (n - 1) // 2 if n else -1) for n in range(count - 1)), strict=True))
        if count > 1
        else DraftTree()
        for count in counts
    ]
    samplers = [made(params, vocab, seed)[0] for seed, params in enumerate(settings)]
    slices = block.split(counts)
    paths = [draft.paths for draft in drafts]
    requests = [RowRequest(*one) for one in zip(samplers, slices, counts, paths, strict=True)]
    copies = [RowRequest(r.sampler, r.logits_RV.clone(), r.position, r.paths) for r in requests]
    alone = [targets_of([request])[0] for request in copies]
    assert targets_of(requests) == targets_of(copies) == alone
    assert targets_of(requests[::-1]) == alone[::-1]
    drawn = [request for request in requests if not request.sampler.params.greedy]
    for found, request in zip(distributions(drawn), drawn, strict=True):
        together = torch.stack(rows_of(found, request))
        assert bits(together, torch.stack(distributions_of(request)))
        if not request.sampler.processors.active:
            rows = [RowRequest(request.sampler, row[None].clone(), 0) for row in request.logits_RV]
            assert bits(together, torch.cat([distributions_of(row)[0][None] for row in rows]))
    checks = [Check(r.sampler, r.logits_RV, draft, r.position) for r, draft in zip(requests, drafts, strict=True)]
    assert [v.tokens for v in rejection.verify(checks[:60])] == [
        rejection.verify([Check(made(settings[n], vocab, n)[0], c.logits_RV, c.draft, c.position)])[0].tokens
        for n, c in enumerate(checks[:60])
    ]


@pytest.mark.parametrize("vocab", [5, 33, *SIZES])
def test_operations_over_many_rows_give_the_bits_of_one_row(vocab):
    """The properties of torch that the sampler relies on."""
    for rows in range(1, 10):
        scores_NV = logits_of(rows, vocab, rows, torch.float32)
        scores_NV[rows // 2, ::3] = -math.inf
        for operation in (
            lambda x: x.softmax(dim=-1),
            lambda x: x.exp().double().cumsum(dim=-1).float(),
            lambda x: x.topk(min(x.shape[-1], 20)).values,
            lambda x: (x - x[..., :1]).exp(),
            lambda x: x / torch.full_like(x[..., :1], 0.8),
        ):
            whole = operation(scores_NV)
            assert all(bits(whole[n], operation(scores_V)) for n, scores_V in enumerate(scores_NV))
            assert all(bits(whole[n], operation(scores_V[None])[0]) for n, scores_V in enumerate(scores_NV))
        for scores_V in scores_NV:  # not over many rows: there it depends on the number of threads
            assert bits(scores_V.logsumexp(dim=-1), scores_V[None].logsumexp(dim=-1)[0])


def samplers():
    """The reference implementation of sampling by random bits, and those in C."""
    found = {"reference": gumbel}
    for dtype in (torch.bfloat16, torch.float32):
        kernels = native.load(dtype, cache_directory())
        if kernels is not None:
            found[str(dtype)] = kernels
    return found


def odd_rows(spread, vocab, dtype=torch.float32):
    """Random rows, of which some have few finite logits, ties, no finite logit or NaN."""
    rows = torch.randn(200, vocab, generator=torch.Generator().manual_seed(3)) * spread
    rows[::5, 7:] -= math.inf
    rows[1::5] = rows[1::5].round()
    rows[2::50] -= math.inf
    rows[3::50, 70] = math.nan
    rows[4::50, 70] = math.inf
    return rows.to(dtype)


SAMPLERS = pytest.mark.parametrize("kernels", samplers())


def dtypes(kernels):
    """Those of the logits that these kernels take."""
    return {torch.float32, getattr(torch, kernels.removeprefix("torch."), torch.bfloat16)}


@SAMPLERS
@pytest.mark.parametrize("margin", [gumbel.MARGIN, math.inf], ids=["sure", "unsure"])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0, 30.0])
def test_the_noise_of_likely_tokens_finds_the_largest_sum(spread, margin, kernels, monkeypatch):
    monkeypatch.setattr(gumbel, "MARGIN", margin)
    vocab, params, temperature = 4097, SamplingParams(temperature=0.7), torch.tensor(0.7)
    sampler, noise = Sampler(params, AddressedNoise(4), PROMPT, ENDS, vocab), AddressedNoise(4)
    for dtype in dtypes(kernels):
        rows = odd_rows(spread, vocab, dtype)
        paths = [(1,) * n for n in range(len(rows))]
        (target,) = targets([RowRequest(sampler, rows, 9, paths, samplers()[kernels])])
        for n, scores_V in enumerate(rows.float() / temperature):
            assert target(n) == int((scores_V + noise.gumbel(9 + n, vocab)).numpy().argmax())


@SAMPLERS
def test_of_two_equal_sums_that_of_the_first_token_wins(kernels):
    """One token is loud, and its noise is added before that of the other one, which has a large logit instead."""
    vocab, position, random = 4097, 9, AddressedNoise(4)
    noise_V = gumbel.gumbel(random.bits(position, vocab))
    loud = int(np.flatnonzero(noise_V > LOUD)[3])
    for near in (loud - 1, loud + 1):
        logits_V = np.full(vocab, -20, np.float32)
        logits_V[loud], logits_V[near] = 0, noise_V[loud] - noise_V[near]
        while (total := logits_V[near] + noise_V[near]) != noise_V[loud]:
            logits_V[near] = np.nextafter(logits_V[near], np.float32(math.copysign(math.inf, noise_V[loud] - total)))
        found = samplers()[kernels].largest_sum(torch.from_numpy(logits_V)[None], 1.0, random, position)
        assert found == min(loud, near)


def test_only_noise_above_the_border_is_loud():
    """Not that of a token whose bits are the border itself, also where it shares a word with one that is loud."""
    kernels = native.load(torch.float32, cache_directory())
    if kernels is None:
        pytest.skip("no C kernels")
    vocab, position, random = 4099, 9, AddressedNoise(4)
    bits_V = random.bits(position, vocab)
    shared = bits_V[: vocab // 2 * 2].reshape(-1, 2).min(axis=1).max()
    for border in (*np.sort(bits_V)[[-1, -2, -40]], shared):
        made, stream = native_sampling._Loud(vocab), native_sampling._stream(random.stream)
        count = kernels._sampling._find_loud(stream, position, vocab, int(border), made.struct)
        assert count == made.struct.count
        assert made._kept[0][:count].tolist() == np.flatnonzero(bits_V > border).tolist()


def test_noise_is_seldom_computed_for_all_tokens():
    found, rows = samplers()["reference"], 2 * logits_of(200, 4097)
    for temperature in (0.05, 0.8):
        sampled = [found.largest_sum(row[None], temperature, AddressedNoise(1), n) for n, row in enumerate(rows)]
        assert None not in sampled


@SAMPLERS
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("vocab", [1, 33, 4097, 49157])
def test_drafts_get_the_noise_of_near_and_of_loud_tokens(kernels, spread, vocab):
    noise = torch.stack([AddressedNoise(1).gumbel(5 + row, vocab) for row in range(10)])
    loud = torch.stack([torch.from_numpy(AddressedNoise(1).bits(5 + row, vocab) > LOUD_BITS) for row in range(10)])
    assert torch.equal(loud, noise > LOUD)
    for dtype in dtypes(kernels):
        rows = odd_rows(spread, max(vocab, 71), dtype)[:10, :vocab].contiguous().float()
        top = rows.amax(dim=-1, keepdim=True)
        changed = loud | ((rows > top - torch.tensor(0.5 * NEAR)) & top.isfinite())
        scores = samplers()[kernels].noisy_rows(rows.to(dtype), 0.5, AddressedNoise(1), 5)
        assert bits(scores, torch.where(changed, rows + 0.5 * noise, rows))


def test_the_logarithm_of_the_noise_is_that_of_numpy():
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    edges = np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    uniform = (np.concatenate((random, edges)) + 0.5) * 2.0**-32
    expected = (-np.log(-np.log(uniform))).astype(np.float32)
    assert np.allclose(gumbel.gumbel(np.concatenate((random, edges))), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("vocab", [33, 320, 4097])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.9999, 1 - 1e-9])
def test_both_ways_to_the_border_of_top_p_end_there(vocab, top_p):
    rows = logits_of(12, vocab, dtype=torch.float32)
    rows[0], rows[1, : vocab // 2], rows[2, 5], rows[3, 7], rows[4] = 0.0, -math.inf, math.inf, math.nan, math.nan
    rows[5, 1:], rows[6], rows[7, [3, 10, 20]], rows[8] = -math.inf, -math.inf, 30.0, rows[8] * 20
    rows[9] = rows[9].bfloat16().float()
    expected = torch.stack([top_p_threshold(row, top_p) for row in rows])[:, None].nan_to_num(1e9)
    assert torch.equal(top_p_border_by_row(rows, top_p).nan_to_num(1e9), expected)
    assert torch.equal(top_p_border_by_sort(rows, top_p).nan_to_num(1e9), expected)


@pytest.mark.parametrize("position", [0, 5, 2**40])
def test_the_noise_of_a_few_tokens_equals_that_of_the_whole_vocabulary(position):
    noise, vocab = AddressedNoise(2**64 - 1, 3), 49157
    whole, order = noise.gumbel(position, vocab), torch.randperm(vocab, generator=torch.Generator().manual_seed(1))
    for count in (1, 2, 3, 7, 8, 9, 64):
        for tokens in (order[:count], order[:count].sort().values, torch.arange(vocab - count, vocab)):
            assert bits(torch.from_numpy(noise.gumbel_of(position, tokens.numpy())), whole[tokens])
