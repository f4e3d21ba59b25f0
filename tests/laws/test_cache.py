"""Laws 5, 6 and 9, and the replay part of law 4: the shared cache."""

from __future__ import annotations

import random

import pytest
import tiny
import torch

from orthrus.bench.memory import PeakBytes
from orthrus.config import DecodingConfig, SamplingParams
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.engine import generate
from orthrus.decoding.rules import exact
from orthrus.decoding.sampling import RowRequest, draft_scores
from orthrus.decoding.sequence import Sequence
from orthrus.model import families
from orthrus.ngrams import Context, Lookup
from orthrus.runner.draft_tree import BlockRows

pytestmark = pytest.mark.parametrize("family", families.names())


def prefilled(runner, tokens, pieces=(), slots=1, slot=0):
    cache = runner.new_tables(slots)
    rest = torch.tensor([tokens])
    for size in (*pieces, rest.shape[1]):
        piece, rest = rest[:, :size], rest[:, size:]
        if piece.shape[1]:
            tiny.ar(runner, piece, cache[slot : slot + 1], rows=[])
            cache[slot].commit(cache[slot].length + piece.shape[1])
    return cache


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_diffuse_leaves_the_cache_untouched(family, dtype):
    runner = tiny.runner(family, dtype)
    cache = prefilled(runner, tiny.request(70).prompt)
    before, length = tiny.cached(cache[0]), cache[0].length
    runner.diffuse([5], 8, cache, rows=7)
    assert cache[0].length == length
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.cached(cache[0]), strict=True))


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_a_committed_cache_equals_a_fresh_prefill_in_any_chunking(family, dtype):
    runner, request = tiny.runner(family, dtype), tiny.request(530, new=40)
    sequence = Sequence(0, request, tiny.LIMITS)
    tiny.prefill(runner, sequence, exact)
    while sequence.finish_reason is None:
        tiny.decode(runner, "two-pass", sequence, Drafting(8), exact)
    tokens = (*request.prompt, *sequence.tokens[:-1])
    assert sequence.table.length == len(tokens)
    for pieces in ((), (1, 2, 3, 500), (512,), (37,) * 10):
        fresh = prefilled(runner, tokens, pieces)
        for kept, recomputed in zip(tiny.cached(sequence.table), tiny.cached(fresh[0]), strict=True):
            assert torch.equal(kept, recomputed), f"pieces {pieces}"


@pytest.mark.parametrize("cycle", ["one-pass", "two-pass", "auto"])
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_tokens_do_not_depend_on_neighbours_or_their_order(family, dtype, cycle):
    runner = tiny.runner(family, dtype)
    requests = [
        tiny.request(3 + 60 * n, 10 + 5 * n, n, SamplingParams(temperature=0.9 * (n % 2), seed=n)) for n in range(6)
    ]
    alone = [tiny.oracle(runner, request).tokens for request in requests]
    for seed, batch in ((1, 2), (2, 3), (3, 6)):
        order = list(range(6))
        random.Random(seed).shuffle(order)
        config = DecodingConfig(cycle=cycle, batch_size=batch)
        steps = generate(runner, [requests[n] for n in order], config, tiny.LIMITS, costs=tiny.COSTS["rows"])
        done = {s.sequence.index: s.sequence.tokens for s in steps if s.sequence.finish_reason}
        assert [done[order.index(n)] for n in range(6)] == alone


@pytest.mark.sampled(4)
@pytest.mark.parametrize("cycle", ["one-pass", "two-pass", "auto"])
def test_tokens_do_not_depend_on_neighbours_under_rejection(family, cycle):
    """In fp32, where diffusion rows differ between batches by rounding only."""
    runner = tiny.runner(family)
    requests = [tiny.request(5 + 40 * n, 24, n, SamplingParams(temperature=0.7, seed=n)) for n in range(4)]
    outputs = []
    for batch in (1, 2, 4):
        config = DecodingConfig(cycle=cycle, batch_size=batch, rule="rejection")
        steps = generate(runner, requests, config, tiny.LIMITS, costs=tiny.COSTS["rows"])
        done = {s.sequence.index: s.sequence.tokens for s in steps if s.sequence.finish_reason}
        outputs.append([done[n] for n in range(4)])
    assert outputs[0] == outputs[1] == outputs[2]


def accepted(scores, temperatures, nodes, text, position, *, first):
    """How many drafts of the tree from these rows, of which the first predicts `position`, the text goes through."""
    lookup = Lookup(Context(text[:position]), first)
    tree = BlockRows.independent().tree(scores, temperatures, nodes, lookup)
    return max(len(path) for path in tree.paths if path == text[position : position + len(path)])


@pytest.mark.sampled(5)
@pytest.mark.parametrize("nodes", [None, 8])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_two_pass_cycles_equal_their_replay(family, temperature, nodes):
    params = SamplingParams(temperature=temperature, seed=9)
    runner, request = tiny.runner(family), tiny.request(20, new=200, sampling=params)
    sampler = Sequence(0, request, tiny.LIMITS).sampler
    config = DecodingConfig(cycle="two-pass", tree_nodes=nodes or 0)
    kept = [s.kept for s in generate(runner, [request], config, tiny.LIMITS)]
    text = [*request.prompt, *[t for verdict in kept for t in verdict.tokens]]
    position, replayed = len(request.prompt), []
    while position < len(text) - 1:
        cache = prefilled(runner, text[:position])
        logits = runner.diffuse([text[position]], 8, cache, rows=7)[0]
        (scores,) = draft_scores([RowRequest(sampler, logits, position + 1, kernels=runner.kernels)], noise=True)
        run = accepted(scores, runner.decoder.draft_temperatures()[:7], nodes, text, position + 1, first=1)
        replayed.append(run)
        position += run + 1
    assert replayed == [verdict.accepted for verdict in kept[1:]]
    assert sum(replayed), "the drafts of the tiny model are never accepted, so this test checks nothing"


PROMPTS = (20, 23, 26, 29, 32, 35, 38)
"""Lengths of prompts to try: with some, no draft of a tiny model is ever accepted."""


@pytest.mark.sampled(5)
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_one_pass_cycles_equal_their_replay(family, temperature):
    """With all blocks at full width, the drafts of a cycle are those of the block rooted at the last accepted token."""
    for prompt in PROMPTS:
        decoded, replayed = decoded_and_replayed(family, temperature, prompt)
        assert replayed == decoded
        if sum(replayed):
            return
    pytest.fail("the drafts of the tiny model are never accepted, so this test checks nothing")


def decoded_and_replayed(family, temperature, prompt):
    """The accepted drafts of every one-pass cycle, by the engine and by replay."""
    params = SamplingParams(temperature=temperature, seed=9)
    runner, request = tiny.runner(family), tiny.request(prompt, new=200, sampling=params)
    sampler = Sequence(0, request, tiny.LIMITS).sampler
    kept = [s.kept for s in generate(runner, [request], DecodingConfig(cycle="one-pass", tree_nodes=0), tiny.LIMITS)]
    text = [*request.prompt, *[t for verdict in kept for t in verdict.tokens]]
    length, root, replayed = len(request.prompt) + 1, len(request.prompt) - 1, []
    while length < len(text):
        cache = prefilled(runner, text[:root])
        logits = runner.diffuse([text[root]], 8, cache, rows=7)[0][length - 1 - root :]
        (scores,) = draft_scores([RowRequest(sampler, logits, length, kernels=runner.kernels)], noise=True)
        run = accepted(scores, runner.decoder.draft_temperatures()[length - 1 - root : 7], None, text, length, first=0)
        replayed.append(run)
        root, length = length - 1 + run, length + run + 1
    return [verdict.accepted for verdict in kept[1:]], replayed


@pytest.mark.sampled(5)
def test_extra_memory_of_drafting_does_not_grow_with_context(family):
    """By a byte for chains; trees differ in shape, and their metadata with them, by less than 16 bytes per token."""
    runner, extra = tiny.runner(family, "fp32", 8, prepared=False), {}
    ways = {"ar": None, "two-pass": None, "one-pass": None, "two-pass tree": 16, "one-pass tree": 16}
    for context in (612, 1636):  # both need more than one block of keys, and end at the same offset in a block
        peaks = {}
        for name, nodes in ways.items():
            cycle = name.removesuffix(" tree")
            sequence = Sequence(0, tiny.request(context, new=50), tiny.LIMITS)
            tiny.prefill(runner, sequence, exact, 8 if cycle == "one-pass" else 0)
            with PeakBytes() as counted:
                tiny.decode(runner, cycle, sequence, Drafting(8, nodes=nodes), exact)
            peaks[name] = counted.peak + len(sequence.table.pages) * sequence.table.cache.page_bytes
        extra[context] = [peaks[name] - peaks["ar"] for name in list(ways)[1:]]
    assert extra[612][:2] == extra[1636][:2]
    assert max(more - less for less, more in zip(extra[612], extra[1636], strict=True)) < 16 * 1024
    assert min(extra[612]) > 0
