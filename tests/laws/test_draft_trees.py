"""Laws for trees of drafts: a tree holds the likeliest paths, and every implementation chooses the same tree."""

from __future__ import annotations

import itertools
import math

import pytest
import tiny
import torch

from orthrus.backends.draft_tree import HeadInputs
from orthrus.backends.torch import TorchKernels
from orthrus.model.draft_head import CANDIDATES, DraftHead

D, V, UNITS = 64, 100, 32


def head(rows=4, dtype="fp32", seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = DraftHead(D, UNITS, rows, tiny.DTYPES[dtype], torch.device("cpu"))
    for parameter in made.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    return made


def block(rows, *, known, dtype="fp32", seed=0):
    """Logits, and the inputs of a head: `known` whether the token before the first row is."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (rows, V), (V, D), (rows + known, D)
    logits, embedding, hidden = (torch.randn(shape, generator=generator).to(tiny.DTYPES[dtype]) for shape in shapes)
    return 2 * logits, HeadInputs(head(rows, dtype, seed), embedding, hidden, 7 if known else None)


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
                direction = inputs.head.direction(context, inputs.embedding_VD[before][None])[0]
                own[candidates[row]] += (inputs.embedding_VD[candidates[row]].float() @ direction).double()
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


def test_rows_without_finite_logits_end_a_tree():
    logits = torch.randn(3, V)
    logits[0, 5:], logits[1, :-2], logits[2] = -torch.inf, torch.nan, torch.nan
    tree = TorchKernels().draft_tree(logits, [1.0] * 3, 40)
    assert len(tree.tokens) == 5 + 5 * 2
    assert len(set(zip(tree.tokens, tree.parents, strict=True))) == 15
    assert TorchKernels().draft_tree(logits[2:], [1.0], 8).tokens == []
