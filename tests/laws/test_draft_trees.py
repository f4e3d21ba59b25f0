"""Laws for trees of drafts: a tree holds the likeliest paths, and every implementation chooses the same tree."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from orthrus.backends.draft_tree import HeadInputs
from orthrus.backends.native import kernels as native
from orthrus.backends.torch import TorchKernels
from orthrus.config import SamplingParams
from orthrus.decoding.draft_tree import constrained_tree
from orthrus.decoding.noise import AddressedNoise
from orthrus.decoding.rules import Proposal, rejection
from orthrus.decoding.sampling import Sampler
from orthrus.file_cache import cache_directory
from orthrus.model.draft_head import CANDIDATES, DraftHead
from orthrus.model.embedding import Embedding
from orthrus.ngrams import Context, Lookup
from orthrus.runner.draft_tree import BlockRows

D, V, UNITS = 64, 100, 32
REPETITIVE = Context([*range(60, 70), 7, 3, 4, 5, *range(70, 80), 7])


def head(rows=4, dtype="fp32", seed=0, units=UNITS):
    generator = torch.Generator().manual_seed(seed)
    made = DraftHead(D, units, rows, tiny.DTYPES[dtype], torch.device("cpu"))
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return made


def block(rows, *, known, dtype="fp32", seed=0):
    """Logits, and the inputs of a head: `known` whether the token before the first row is."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, V), (V, D), (rows + known, D)
    logits, embedding, hidden = (torch.randn(shape, generator=generator).to(tiny.DTYPES[dtype]) for shape in shapes)
    return 2 * logits, HeadInputs(head(rows, dtype, seed), Embedding(embedding), hidden, 7 if known else None)


def path_probabilities(logits, temperatures, inputs):
    """The probability of every path of candidates, by brute force over paths, in float64."""
    rows, found = len(logits), {}
    candidates = [row.topk(CANDIDATES).indices.tolist() for row in logits.float()]
    for depth in range(1, rows + 1):
        for path in itertools.product(*candidates[:depth]):
            row, own = depth - 1, logits[depth - 1].double().clone()
            before = inputs and (path[row - 1] if row else inputs.first_token)
            if before is not None:
                states = inputs.hidden_SD
                at = row if inputs.first_token is None else row + 1
                context = inputs.head.context(states[at][None], states[at - 1][None])
                direction = inputs.head.direction(context, inputs.embedding.weight[before][None])[0]
                own[candidates[row]] += (inputs.embedding.weight[candidates[row]].float() @ direction).double()
            log_p = (own / temperatures[row]).log_softmax(-1)[path[-1]]
            found[path] = math.exp(log_p) * (found[path[:-1]] if row else 1.0)
    return found


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("nodes", [1, 7, 40])
def test_a_tree_holds_the_likeliest_paths_in_order(nodes, with_head, known):
    logits, inputs = block(3, known=known)
    inputs, temperatures = inputs if with_head else None, [0.6, 1.0, 1.3]
    tree = TorchKernels().draft_tree(logits, temperatures, nodes, inputs)
    paths = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    expected = path_probabilities(logits, temperatures, inputs)
    best = sorted(expected, key=expected.get, reverse=True)[:nodes]
    assert paths == best
    for path, confidence in zip(paths, tree.confidence, strict=True):
        assert confidence == pytest.approx(expected[path] / expected.get(path[:-1], 1.0), rel=1e-4)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("with_head", [False, True])
def test_a_chain_takes_the_likeliest_candidate_after_its_last_token(with_head, known):
    logits, inputs = block(3, known=known)
    inputs, temperatures = inputs if with_head else None, [0.6, 1.0, 1.3]
    chain = TorchKernels().draft_tree(logits, temperatures, None, inputs)
    expected, path = path_probabilities(logits, temperatures, inputs), ()
    for _ in range(3):
        after = {own[-1]: p for own, p in expected.items() if own[:-1] == path}
        path = (*path, max(after, key=after.get))
    assert (tuple(chain.tokens), chain.parents) == (path, [-1, 0, 1])
    assert math.prod(chain.confidence) == pytest.approx(expected[path], rel=1e-4)


@pytest.mark.parametrize("nodes", [None, 6])
@pytest.mark.parametrize("known", [False, True])
def test_rejection_draws_from_what_the_head_makes_of_each_row(known, nodes):
    """q is the distribution of a row over the whole vocabulary, after the token drawn before it."""
    logits, inputs = block(3, known=known)
    sampler = Sampler(SamplingParams(temperature=0.7, seed=5), AddressedNoise(5, 0), (), frozenset(), V)
    (draft,) = rejection.propose(
        [Proposal(sampler, logits, 9, 16, [1.0] * 3, nodes, BlockRows(TorchKernels(), inputs))]
    )
    assert draft.depth > 1
    for path, q in zip(draft.paths[1:], draft.q, strict=True):
        row = len(path) - 1
        expected, before = logits[row].double().clone(), path[-2] if row else inputs.first_token
        if before is not None:
            chosen, at = logits[row].topk(CANDIDATES).indices, row + known
            context = inputs.head.context(inputs.hidden_SD[at][None], inputs.hidden_SD[at - 1][None])
            direction = inputs.head.direction(context, inputs.embedding.weight[before][None])[0]
            expected[chosen] += (inputs.embedding.weight[chosen] @ direction).double()
        torch.testing.assert_close(q.double(), (expected / 0.7).softmax(0), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("lookup", [None, Lookup(REPETITIVE), Lookup(REPETITIVE, 1)])
@pytest.mark.parametrize("nodes", [None, 7])
@pytest.mark.parametrize("known", [False, True])
def test_a_constraint_that_allows_everything_changes_no_tree(known, nodes, lookup):
    """Trees under a constraint are grown by a search of their own, in which the draft head corrects each row too."""
    logits, inputs = block(3, known=known)
    rows, temperatures = BlockRows(TorchKernels(), inputs), [0.6, 1.0, 1.3]
    free = SimpleNamespace(goes_on=lambda path: True, mask=lambda: np.ones(V, dtype=np.bool_))
    tree = constrained_tree(rows, logits, temperatures, nodes, free, lookup)
    expected = rows.tree(logits, temperatures, nodes, lookup)
    assert replace(tree, confidence=[]) == replace(expected, confidence=[])
    assert tree.confidence == pytest.approx(expected.confidence, rel=1e-4)


@pytest.mark.parametrize("nodes", [None, 12])
def test_a_match_that_a_constraint_forbids_is_no_draft(nodes):
    """The text goes on with 3 after its last token, and only then with 4."""
    allowed_V = np.arange(V) != 3
    rows, lookup = BlockRows(TorchKernels(), None), Lookup(REPETITIVE)
    grammar = SimpleNamespace(goes_on=lambda path: 3 not in path, mask=lambda: allowed_V)
    for count in (0, 2):
        logits, _ = block(count, known=False)
        assert 3 in rows.tree(logits, [1.0] * count, 12, lookup).tokens
        assert 3 not in constrained_tree(rows, logits, [1.0] * count, nodes or count, grammar, lookup).tokens


def implementations(dtype):
    """The reference and the C kernels, where there are any."""
    return [own for own in (TorchKernels(), native.load(tiny.DTYPES[dtype], cache_directory())) if own is not None]


def distinct(rows, vocabulary, generator):
    """Logits in bf16 of which the largest have no equals: the order of equals is not defined."""
    logits = torch.randn(rows, vocabulary, generator=generator).clamp(max=1.5)
    for row in logits:
        row[torch.randperm(vocabulary, generator=generator)[:16]] = 1.75 + torch.arange(16) / 8
    return logits.bfloat16()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), [("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")])
@pytest.mark.parametrize(
    ("rows", "vocabulary", "nodes", "units"),
    [(1, 17, 3, 32), (4, 1000, 1, 32), (8, 3001, 16, 48), (8, 257, 70, 32), (8, 700, None, 32), (20, 1500, 24, 32)],
)
def test_every_implementation_chooses_the_same_tree(rows, vocabulary, nodes, units, dtype, kind, with_head, known):
    """Also where the logits are fp32 and the model is not. Tiles hold 32 units, and 16 rows."""
    generator = torch.Generator().manual_seed(rows + (nodes or 0))
    logits = distinct(rows, vocabulary, generator).to(tiny.DTYPES[kind])
    shapes = (vocabulary, D), (rows + known, D)
    embedding, hidden = (torch.randn(shape, generator=generator).to(tiny.DTYPES[dtype]) for shape in shapes)
    own = head(rows, dtype, units=units)
    inputs = HeadInputs(own, Embedding(embedding), hidden, 7 if known else None) if with_head else None
    temperatures = (0.5 + torch.rand(rows, generator=generator)).tolist()
    expected, *others = (own.draft_tree(logits, temperatures, nodes, inputs) for own in implementations(dtype))
    most = rows if nodes is None else nodes
    assert len(expected.tokens) == min(most, sum(CANDIDATES**depth for depth in range(1, rows + 1)))
    for tree in others:
        assert (tree.tokens, tree.parents) == (expected.tokens, expected.parents)
        assert tree.confidence == pytest.approx(expected.confidence, rel=1e-4 if dtype == "fp32" else 0.05)


def repetitive(logits, generator, last):
    """A text that repeats itself, not always alike, over likely tokens of all rows and over others."""
    likely = logits.float().topk(3).indices.flatten()
    tokens = torch.cat((likely, torch.randint(logits.shape[1], (len(likely),), generator=generator)))
    text = tokens[torch.randint(len(tokens), (10,), generator=generator)].repeat(20)
    places = torch.randint(len(text), (len(text) // 6,), generator=generator)
    text[places] = tokens[torch.randint(len(tokens), places.shape, generator=generator)]
    text[::10] = last
    return Context([*text.tolist(), last])


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), [("fp32", "fp32"), ("bf16", "bf16"), ("bf16", "fp32")])
@pytest.mark.parametrize(("rows", "nodes"), [(1, 5), (4, 24), (8, 16), (8, None), (8, 1)])
def test_every_implementation_looks_up_the_same_drafts(rows, nodes, dtype, kind, with_head):
    """Drafts that are no candidates too, what the head makes of the row after them, and those below the last row."""
    deeper = looked_up = 0
    for seed in range(10):
        generator, last = torch.Generator().manual_seed(seed), 7
        logits = distinct(rows, 300, generator).to(tiny.DTYPES[kind])
        shapes = (300, D), (rows + 1, D)
        embedding, hidden = (torch.randn(shape, generator=generator).to(tiny.DTYPES[dtype]) for shape in shapes)
        inputs = HeadInputs(head(rows, dtype), Embedding(embedding), hidden, last) if with_head else None
        context = repetitive(logits, generator, last)
        expected, *others = (
            own.draft_tree(logits, [1.0] * rows, nodes, inputs, Lookup(context, seed % 2))
            for own in implementations(dtype)
        )
        deeper += expected.depth > rows
        looked_up += "lookup" in expected.kinds
        for tree in others:
            assert replace(tree, confidence=[]) == replace(expected, confidence=[])
            assert tree.confidence == pytest.approx(expected.confidence, rel=1e-3 if dtype == "fp32" else 0.05)
    assert looked_up or nodes in (None, 1)
    assert deeper or rows == 8


@pytest.mark.parametrize("kernels", implementations("fp32"), ids=lambda own: own.name)
def test_a_text_alone_gives_the_chain_that_followed_before(kernels):
    nothing = torch.empty(0, V)
    tree = kernels.draft_tree(nothing, [], 6, None, Lookup(Context([1, 2, 3, 4, 5, 6, 1, 2, 3])))
    assert tree.tokens == [4, 5, 6, 1, 2, 3]
    assert tree.parents == [*range(-1, 5)]
    assert set(tree.kinds) == {"lookup"}
    assert kernels.draft_tree(nothing, [], 6, None, Lookup(Context([1, 2, 3]))).tokens == []
    assert kernels.draft_tree(nothing, [], 6, None, Lookup(Context())).tokens == []


@pytest.mark.parametrize("kernels", implementations("fp32"), ids=lambda own: own.name)
def test_rows_without_finite_logits_end_a_tree(kernels):
    logits = torch.randn(3, V)
    logits[0, 5:], logits[1, :-2], logits[2] = -torch.inf, torch.nan, torch.nan
    tree = kernels.draft_tree(logits, [1.0] * 3, 40)
    assert len(tree.tokens) == 5 + 5 * 2
    assert len(set(zip(tree.tokens, tree.parents, strict=True))) == 15
    assert kernels.draft_tree(logits[2:], [1.0], 8).tokens == []
    assert kernels.draft_tree(logits, [1.0] * 3, None).parents == [-1, 0]
    for infinite in (0, V - 1):  # the last ones do not fill a vector
        logits[0] = torch.randn(V)
        logits[0, infinite] = torch.inf
        assert kernels.draft_tree(logits, [1.0] * 3, 1).tokens == [infinite]


@pytest.mark.parametrize("kernels", implementations("fp32"), ids=lambda own: own.name)
def test_rounding_that_leaves_less_than_nothing_for_the_other_tokens_ends_no_tree(kernels):
    """The candidates hold all of a row's probability, and the head lowers all their logits by 40. What the sum of a row
    exceeds that of its candidates by is then rounding, of either sign, at the scale before the head."""
    made = head(2)
    for weights in (made.row, made.before, made.token):
        weights.data.zero_()
    made.bias.data.fill_(20)
    made.output.data.fill_(-1 / UNITS)
    inputs = HeadInputs(made, Embedding(torch.full((V, D), 40 / 20 / D)), torch.zeros(2, D))
    for seed in range(30):
        logits = torch.full((2, V), -100.0)
        logits[:, :CANDIDATES] = torch.randn(2, CANDIDATES, generator=torch.Generator().manual_seed(seed))
        tree = kernels.draft_tree(logits, [1.0, 1.0], 72, inputs)
        assert len(tree.tokens) == CANDIDATES + CANDIDATES**2
        assert all(0 <= confidence <= 1 for confidence in tree.confidence)


@pytest.mark.parametrize("kernels", implementations("fp32"), ids=lambda own: own.name)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_damaged_head_leaves_the_first_row(kernels, value):
    logits, inputs = block(3, known=False)
    inputs.head.output.data.fill_(value)
    tree = kernels.draft_tree(logits, [1.0] * 3, 20, inputs)
    assert tree.parents[:CANDIDATES] == [-1] * CANDIDATES
    assert all(0 <= confidence <= 1 for confidence in tree.confidence)
