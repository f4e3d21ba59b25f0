"""Laws 3 and 4 for training: the step equals its reference, training equals decoding, and only the view is trained."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import reference
import tiny
import torch

from orthrus.bench.training import plain_loss as plain_loss_of_bench
from orthrus.model import families
from orthrus.training import objectives, ops
from orthrus.training.attention import BlockAttention, Scores
from orthrus.training.blocks import Blocks
from orthrus.training.parameters import prepare_head
from orthrus.training.rows import head_rows
from orthrus.training.step import states_of, step

STARTS = (0, 17, 22)
"""Starts of three documents in one text; the second is too short to contain a root."""
ROOTS, ENDS = (3, 9, 10, 26), (17, 17, 12, 40)
"""Roots and the ends of their turns; some blocks extend past the end of their turn."""


def packed(block_size=8, trained_rows=7):
    tokens = torch.tensor(tiny.request(40).prompt)
    return Blocks(tokens, STARTS, torch.tensor(ROOTS), torch.tensor(ENDS), block_size, trained_rows)


def documents(blocks):
    """The tokens of each document, and its roots and ends relative to its start."""
    borders = [*blocks.starts, len(blocks.tokens_T)]
    for start, stop in itertools.pairwise(borders):
        pairs = zip(blocks.roots_S.tolist(), blocks.ends_S.tolist(), strict=True)
        inside = [(root - start, end - start) for root, end in pairs if start <= root < stop]
        yield blocks.tokens_T[start:stop], inside


def trainable(family):
    """Plain weights whose diffusion view requires gradients."""
    made = tiny.decoder(family)
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(".diffusion." in name)
    return made


def mixed(divergence, overlap):
    """KL and total variation of a row, weighted by an overlap that is a constant to the gradient."""
    weight = (-3 * overlap.detach()).exp()
    return weight * divergence + (1 - weight) * (1 - overlap)


REFERENCES = {
    "cross-entropy": lambda log_q, log_p, target: -log_q[target],
    "kl": lambda log_q, log_p, target: (log_p.exp() * (log_p - log_q)).sum(),
    "expected-prefix": lambda log_q, log_p, target: 1 - torch.minimum(log_p.exp(), log_q.exp()).sum(),
    "mixed": lambda log_q, log_p, target: mixed(
        (log_p.exp() * (log_p - log_q)).sum(), torch.minimum(log_p.exp(), log_q.exp()).sum()
    ),
    "total-variation": lambda log_q, log_p, target: (log_p.exp() - log_q.exp()).abs().sum() / 2,
}
"""Of one row, by objective; `expected-prefix` also takes the rows before it in its block."""


def test_every_objective_has_a_reference():
    assert objectives.names() == sorted(REFERENCES)


def plain_loss(decoder, blocks, objective, decay):
    """The reference loss: autograd over the reference forward pass, one document and one block at a time."""
    losses, weights = [], []
    drafted = decoder.diffusion.draft_vocabulary or range(tiny.VOCAB)
    for tokens, roots in documents(blocks):
        teacher = reference.forward(decoder, tokens).detach()[:, list(drafted)].log_softmax(-1)
        for root, end in roots:
            rows, accepted = reference.forward(decoder, tokens, root=root, block=blocks.block_size), 1
            for row, position in enumerate(range(root, min(root + blocks.trained_rows, end - 1))):
                log_q, log_p, token = rows[row][list(drafted)].log_softmax(-1), teacher[position], tokens[position + 1]
                target = drafted.index(token) if token in drafted else 0
                loss = REFERENCES[objective](log_q, log_p, target)
                accepted = accepted * (1 - loss)
                losses.append(1 - accepted if objective == "expected-prefix" else loss)
                weights.append(decay**row if token in drafted else 0)
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)


OPS = {False: ops.Ops, True: lambda: tiny.native_ops(torch.float32)}


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("trained_rows", "decay"), [(7, 1.0), (8, 1.0), (8, 0.6)])
@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("family", families.names())
def test_loss_and_every_gradient_equal_the_reference(family, objective, trained_rows, decay, fast):
    blocks = packed(trained_rows=trained_rows)
    one, other = trainable(family), trainable(family)
    loss = step(one, blocks, objectives.load(objective), OPS[fast](), decay=decay).loss
    expected = plain_loss(other, blocks, objective, decay)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    for (name, got), (_, counterpart) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        if ".diffusion." in name:
            torch.testing.assert_close(
                got.grad, counterpart.grad, atol=2e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )
        else:
            assert got.grad is None, f"{name} is frozen"


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("objective", objectives.names())
def test_with_a_draft_vocabulary_views_are_compared_over_its_tokens(objective, fast):
    """Rows whose target is not drafted have no weight. The head learns over the same tokens."""
    blocks, (one, other) = packed(), (trainable("qwen3") for _ in range(2))
    present = sorted({*blocks.tokens_T.tolist()})
    drafted = tuple(sorted({*present[::2], *range(0, tiny.VOCAB, 5)}))[:64]
    assert 4 < len({*present} - {*drafted}) < len(present) - 4
    for made in (one, other):
        made.set_view(replace(made.diffusion, draft_vocabulary=drafted))
    prepare_head(one, 16, 0)
    one.draft_head.bias.requires_grad_()
    outcome = step(one, blocks, objectives.load(objective), OPS[fast](), decay=0.8)
    expected = plain_loss(other, blocks, objective, 0.8)
    torch.testing.assert_close(outcome.loss, expected, atol=1e-5, rtol=1e-5)
    outcome.total.backward()
    expected.backward()
    for (name, got), (_, counterpart) in zip(one.named_parameters(), other.named_parameters(), strict=False):
        if ".diffusion." in name:
            torch.testing.assert_close(got.grad, counterpart.grad, atol=2e-5, rtol=1e-3)
    assert one.draft_head.bias.grad.abs().sum() > 0 or not float(one.draft_head.output.abs().sum())
    rows = head_rows(one, states_of(one, blocks))
    assert {*rows.candidates_SMC[rows.inside_SM].flatten().tolist()} <= {*drafted}
    assert {*rows.chosen_SM[rows.inside_SM].tolist()} <= {*drafted}
    whole = reference.forward(one, blocks.tokens_T[:17], root=3, block=8)
    torch.testing.assert_close(
        rows.logits_SMC[0, 0], whole[0, list(drafted)].sort(descending=True).values[:8], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("family", families.names())
def test_a_block_in_training_is_the_block_in_decoding(family):
    """The agreement per offset of a training step equals that of `diffuse` at the same roots."""
    blocks, runner = packed(), tiny.runner(family)
    outcome = step(trainable(family), blocks, objectives.load("kl"))
    agreed, rows = torch.zeros(7), torch.zeros(7)
    for tokens, roots in documents(blocks):
        teacher = tiny.ar(runner, tokens[None], runner.new_tables())[0].argmax(-1)
        for root, end in roots:
            cache = runner.new_tables()
            tiny.ar(runner, tokens[None, :root], cache, rows=[])
            cache[0].commit(root)
            drafts = runner.diffuse([int(tokens[root])], 8, cache, rows=7)[0].argmax(-1)
            trained = min(7, end - root - 1)
            rows[:trained] += 1
            agreed[:trained] += drafts[:trained] == teacher[root : root + trained]
    assert torch.equal(outcome.agreed_M, agreed)
    assert torch.equal(outcome.rows_M, rows)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "how", [Scores(), Scores(0.2), Scores(0.2, 1.5), Scores(window=4), Scores(0.2, 1.5, 2)], ids=str
)
@pytest.mark.parametrize("heads", [2, 6])
def test_attention_of_blocks_equals_its_brute_force_grid(heads, how, fast):
    """Output and gradients equal attention of one row and head at a time over the keys of its document and block."""
    blocks, generator = packed(block_size=4, trained_rows=3), torch.Generator().manual_seed(0)
    shapes = ((16, heads, 8), (16, 2, 8), (16, 2, 8), (40, 2, 8), (40, 2, 8))
    q, k, v, text_k, text_v = (torch.randn(shape, generator=generator) for shape in shapes)
    inputs = [t.requires_grad_() for t in (q, k, v)]
    out = BlockAttention.apply(*inputs, (text_k, text_v), blocks, OPS[fast](), how)
    expected = torch.zeros_like(out)
    for row, head in itertools.product(range(16), range(heads)):
        root, group = ROOTS[row // 4], head // (heads // 2)
        text = range(max(start for start in STARTS if start <= root), root)
        text = [position for position in text if how.window is None or root - position < how.window]
        own = range(row // 4 * 4, row // 4 * 4 + 4)
        keys = torch.cat((text_k[text, group], k[list(own), group]))
        values = torch.cat((text_v[text, group], v[list(own), group]))
        scores = keys @ q[row, head] * (how.scale or 8**-0.5)
        weights = (how.soft_cap * torch.tanh(scores / how.soft_cap) if how.soft_cap else scores).softmax(-1)
        expected[row, head] = weights @ values
    torch.testing.assert_close(out, expected)
    grad = torch.randn(out.shape, generator=generator)
    for one, other in zip(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("size", [48, 51])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_logits_are_those_of_torch(dtype, size):
    logits = torch.randn(7, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0, 40:47] = logits[0].max() + 1  # equal ones
    logits[1] = -torch.inf
    largest, tokens = tiny.native_ops(dtype).largest(logits)
    assert torch.equal(largest, logits.amax(-1).to(largest.dtype))
    assert torch.equal(logits[range(7), tokens], logits.amax(-1))
    assert int(tokens[0]) == 40


PLAIN = [name for name in families.names() if not families.decoder_config(tiny.hf_config(name)).features]


@pytest.mark.parametrize("family", PLAIN)
def test_the_baseline_of_the_benchmark_has_the_same_loss_and_gradients(family):
    blocks, one, other = packed(), trainable(family), trainable(family)
    losses = step(one, blocks, objectives.load("kl")).loss, plain_loss_of_bench(other, blocks)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for (name, got), (_, counterpart) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        if ".diffusion." in name:
            torch.testing.assert_close(got.grad, counterpart.grad, atol=2e-5, rtol=1e-3)


def test_impossible_blocks_are_refused():
    tokens, one = torch.arange(30), torch.tensor([23])
    with pytest.raises(ValueError, match="has no roots"):
        Blocks(tokens, (0,), one[:0], one[:0], 8, 7)
    with pytest.raises(ValueError, match="inside the text"):
        Blocks(tokens, (0,), one, torch.tensor([31]), 8, 7)
    with pytest.raises(ValueError, match="needs a target"):
        Blocks(tokens, (0,), one, torch.tensor([24]), 8, 7)
    with pytest.raises(ValueError, match="ascend"):
        Blocks(tokens, (0,), torch.tensor([5, 3]), torch.tensor([9, 9]), 8, 7)
    with pytest.raises(ValueError, match="cross-entropy, expected-prefix, kl, mixed, total-variation"):
        objectives.load("mse")
