"""Laws for the training of draft heads: its rows, its calibration and its replay equal those of decoding."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import reference
import tiny
import torch

from orthrus.backends.native import kernels as native
from orthrus.file_cache import cache_directory
from orthrus.model.draft_head import CANDIDATES, typical_inverse_temperature
from orthrus.runner.draft_tree import BlockRows
from orthrus.runner.runner import Runner
from orthrus.training import objectives, ops
from orthrus.training.blocks import Blocks
from orthrus.training.draft_head import INVERSE_TEMPERATURES, calibrate, corrections, fitted, head_loss, nearest_inverse
from orthrus.training.parameters import of_head, trainable
from orthrus.training.replay import accepted_drafts
from orthrus.training.rows import head_rows, joined
from orthrus.training.step import DraftHeadRule, states_of, step

UNITS, K, M, NODES = 32, 8, 7, 40
OPS = {"reference": ops.Ops, "native": lambda: tiny.native_ops(torch.float32)}


def with_head(family):
    """A tiny decoder with a random draft head."""
    made = tiny.decoder(family)
    own = made.set_draft_head(UNITS)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in own.named_parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        if name == "inverse_temperatures":
            parameter.data.copy_(torch.tensor(INVERSE_TEMPERATURES)[torch.arange(2, 2 + M)])
    return made


def prepared(family):
    return Runner.prepare(with_head(family), native.load(torch.float32, cache_directory()))


def greedy_texts(runner):
    """Prompts with their greedy answers, and where these begin."""
    for length, new in ((11, 24), (5, 30), (8, 2)):
        asked = tiny.request(length, new, seed=length)
        yield [*asked.prompt, *tiny.oracle(runner, asked).tokens], length


def every_root(texts):
    """The blocks at all roots of all answers, in one packed text."""
    starts, roots, ends, tokens = [], [], [], []
    for text, begin in texts:
        start = len(tokens)
        starts.append(start)
        tokens += text
        roots += range(start + begin - 1, len(tokens) - 1)
        ends += [len(tokens)] * (len(text) - begin)
    return Blocks(torch.tensor(tokens), tuple(starts), torch.tensor(roots), torch.tensor(ends), K, M)


def rows_of(decoder, blocks, **options):
    return head_rows(decoder, states_of(decoder, blocks), INVERSE_TEMPERATURES, **options)


def _cross_entropy(targets_C, q_X):
    rest = (1 - targets_C.sum()).clamp(min=0)
    return -(torch.cat((targets_C, rest[None])) * q_X.log()).sum()


def _rejected(targets_C, q_X):
    return 1 - sum(torch.minimum(p, q) for p, q in zip(targets_C, q_X[:-1], strict=True))


def _mixed(targets_C, q_X):
    """KL and the rejected share, weighted by an overlap that is a constant to the gradient."""
    targets_X = torch.cat((targets_C, (1 - targets_C.sum()).clamp(min=0)[None]))
    weight = (-3 * (1 - _rejected(targets_C, q_X)).detach()).exp()
    divergence = _cross_entropy(targets_C, q_X) - torch.special.entr(targets_X).sum()
    return weight * divergence + (1 - weight) * _rejected(targets_C, q_X)


OUTCOMES = {
    "cross-entropy": (1.0, _cross_entropy), "kl": (0.2, _cross_entropy), "total-variation": (0.2, _rejected),
    "expected-prefix": (0.2, _rejected), "mixed": (0.2, _mixed),
}  # fmt: skip
"""By objective, the share of the tokens of the text in the targets, and the loss of one row of the head from targets of
its candidates and its probabilities, that of the rest last; `expected-prefix` also takes the rows before it."""


@pytest.mark.parametrize("objective", objectives.names())
def test_the_loss_of_a_head_and_its_gradient_equal_the_reference(objective):
    decoder, decay, (share, loss_of) = with_head("qwen3"), 0.7, OUTCOMES[objective]
    decoder.draft_head.requires_grad_()
    rows = head_rows(decoder, states_of(decoder, every_root([([*tiny.request(30).prompt], 6)])))
    losses, weights = [], []
    for block, count in enumerate(rows.counts_S.tolist()):
        accepted = 1
        for row in range(1, count):
            where = torch.tensor([block]), torch.tensor([row])
            logits_C = rows.logits_SMC[block, row] + corrections(decoder, rows, *where)[0]
            q_X = torch.cat((logits_C, rows.rests_SMI[block, row, :1])).softmax(-1)
            is_text_C = (rows.candidates_SMC[block, row] == rows.text_SL[block, row + 1]).float()
            loss = loss_of((1 - share) * rows.teacher_SMC[block, row] + share * is_text_C, q_X)
            accepted = accepted * (1 - loss)
            losses.append(1 - accepted if objective == "expected-prefix" else loss)
            weights.append(decay**row)
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    loss, *_ = head_loss(decoder, rows, objectives.load(objective), decay)
    torch.testing.assert_close(loss, expected)
    parameters = [p for name, p in decoder.draft_head.named_parameters() if name != "inverse_temperatures"]
    for one, other in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_view_and_head_have_objectives_of_their_own():
    decoder, blocks = with_head("qwen3"), every_root([([*tiny.request(30).prompt], 6)])
    decoder.draft_head.requires_grad_()
    names = itertools.product(("kl", "total-variation"), repeat=2)
    losses = {
        own: (outcome.loss.item(), outcome.head_loss.item())
        for own in names
        for view, head in [map(objectives.load, own)]
        for outcome in [step(decoder, blocks, view, draft_head=DraftHeadRule(head))]
    }
    for (view, head), found in losses.items():
        assert found == (losses[view, view][0], losses[head, head][1])
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_the_view_learns_from_the_loss_of_the_head(family):
    """The gradient of the view is that of its own loss and a share of that of the head's, through the hidden states and
    the logits of the candidates. The gradient of the head is its own."""
    decoder, share, objective = with_head(family), 0.3, objectives.load("kl")
    blocks = Blocks(
        torch.tensor(tiny.request(40).prompt), (0,), torch.tensor([3, 9, 36]), torch.tensor([40, 12, 38]), K, M
    )
    parameters = trainable(decoder, head=True)
    view, head = ([p for name, p in parameters.items() if of_head(name) == which] for which in (False, True))
    states = states_of(decoder, blocks)
    rows = head_rows(decoder, states)
    hidden_SMD = states.hidden_SKD[:, :M]
    logits_SMV = hidden_SMD @ decoder.head.weight.T
    if (cap := decoder.config.logit_soft_cap) is not None:
        logits_SMV = cap * torch.tanh(logits_SMV / cap)
    logits_SMC = logits_SMV.gather(2, rows.candidates_SMC.long())
    taught = head_loss(decoder, replace(rows, hidden_SMD=hidden_SMD, logits_SMC=logits_SMC), objective, 0.8)[0]

    def gradients(loss, parameters):
        return torch.autograd.grad(loss, parameters, retain_graph=True)

    alone = step(decoder, blocks, objective, decay=0.8)
    both = step(decoder, blocks, objective, decay=0.8, draft_head=DraftHeadRule(objective, share))
    torch.testing.assert_close(both.total, alone.total)
    for found, own, more in zip(
        gradients(both.total, view), gradients(alone.total, view), gradients(taught, view), strict=True
    ):
        torch.testing.assert_close(found, own + share * more, atol=1e-6, rtol=1e-4)
        assert float(more.abs().max()) > 0
    for found, own in zip(gradients(both.total, head), gradients(alone.total, head), strict=True):
        torch.testing.assert_close(found, own, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("how", list(OPS))
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_rows_equal_the_reference(family, how):
    """Every field, from the full distributions of the reference implementation."""
    decoder, tokens = with_head(family), torch.tensor(tiny.request(40).prompt)
    roots, ends = [3, 9, 30, 36], [40, 12, 40, 38]
    blocks = Blocks(tokens, (0,), torch.tensor(roots), torch.tensor(ends), K, M)
    rows = rows_of(decoder, blocks, ops=OPS[how]())
    teacher_TV = reference.forward(decoder, tokens).detach()
    for block, (root, end) in enumerate(zip(roots, ends, strict=True)):
        logits_RV = reference.forward(decoder, tokens, root=root, block=K).detach()
        count = min(M, end - root - 1)
        assert int(rows.counts_S[block]) == count
        assert rows.text_SL[block, : count + 1].tolist() == tokens[root : root + count + 1].tolist()
        for row in range(count):
            top, logits, teacher = logits_RV[row].topk(CANDIDATES), logits_RV[row], teacher_TV[root + row]
            assert rows.candidates_SMC[block, row].tolist() == top.indices.tolist()
            torch.testing.assert_close(rows.logits_SMC[block, row], top.values, atol=1e-4, rtol=1e-4)
            others = logits.scatter(0, top.indices, -torch.inf)
            rests = [float((inverse * others).logsumexp(0)) for inverse in INVERSE_TEMPERATURES]
            assert rows.rests_SMI[block, row].tolist() == pytest.approx(rests, abs=1e-3)
            shares = teacher.softmax(-1)[top.indices].tolist()
            assert rows.teacher_SMC[block, row].tolist() == pytest.approx(shares, abs=1e-4)
            assert int(rows.chosen_SM[block, row]) == int(teacher.argmax())
            assert float(rows.chosen_logits_SM[block, row]) == pytest.approx(float(logits[teacher.argmax()]), abs=1e-4)
        assert not rows.hidden_SMD[block, count:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_candidates_of_the_kernel_are_those_of_torch(dtype):
    logits_NV = (torch.randn(5, 1003, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    logits_NV[0, 17] = 60.0  # leaves nothing for the others
    inverses = (0.6, 1.0, 2.5)
    (tokens, top, rests), (like_tokens, like_top, like_rests) = (
        own.candidates(logits_NV, inverses) for own in (tiny.native_ops(dtype), ops.Ops())
    )
    assert torch.equal(top, like_top)
    if dtype == torch.float32:  # equal logits, of which bfloat16 has many, may stand in another order
        assert torch.equal(tokens, like_tokens)
    for number, inverse in enumerate(inverses):
        total = like_rests[:, number].logaddexp((inverse * top).logsumexp(-1))
        shares = [(own[:, number] - total).exp() for own in (rests, like_rests)]
        torch.testing.assert_close(*shares, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma2"])
def test_the_head_in_training_is_the_head_in_decoding(family):
    """The probabilities of the candidates of a row, given the token before it, at the same root."""
    trained, runner = with_head(family), prepared(family)
    tokens, roots = torch.tensor(tiny.request(40).prompt), [9, 20, 30]
    blocks = Blocks(tokens, (0,), torch.tensor(roots), torch.tensor([40] * 3), K, M)
    rows = head_rows(trained, states_of(trained, blocks))
    blocks_N, offsets_N = torch.arange(3).repeat_interleave(M - 1), torch.arange(1, M).repeat(3)
    logits_NC = rows.logits_SMC[blocks_N, offsets_N] + corrections(trained, rows, blocks_N, offsets_N)
    shares_NX = torch.cat((logits_NC, rows.rests_SMI[blocks_N, offsets_N]), dim=-1).softmax(-1)
    candidates_NC = rows.candidates_SMC[blocks_N, offsets_N]
    expected = iter(zip(candidates_NC.tolist(), shares_NX[:, :-1].tolist(), strict=True))
    for root in roots:
        table = runner.new_tables()
        tiny.ar(runner, tokens[None, :root], table, rows=[])
        table[0].commit(root)
        logits, hidden = (part[0] for part in runner.diffuse_rows([int(tokens[root])], K, table, rows=M))
        for row in range(1, M):
            first, states = int(tokens[root + row]), hidden[row - 1 : row + 1]
            tree = BlockRows.of(runner, states, first).tree(logits[row : row + 1], [1.0], CANDIDATES)
            found = dict(zip(tree.tokens, tree.confidence, strict=True))
            assert found == pytest.approx(dict(zip(*next(expected), strict=True)), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("headless", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_a_replay_takes_the_cycles_of_decoding(family, headless):
    """Of each root by the kernels that decode, then of the walk."""
    trained, runner = with_head(family), prepared(family)
    if headless:
        trained.draft_head = runner.decoder.draft_head = None
    temperatures = [
        1 / INVERSE_TEMPERATURES[nearest_inverse(1 / temperature)] for temperature in trained.draft_temperatures()
    ]
    texts, accepted = list(greedy_texts(runner)), []
    for text, begin in texts:
        (table,) = runner.new_tables(1, len(text))
        runner.ar([text], [table], logit_rows=[])
        table.commit(len(text))
        of_root = {}
        for root in reversed(range(begin, len(text) - 1)):
            table.commit(root)
            (logits,), (hidden,) = runner.diffuse_rows([text[root]], K, [table], rows=M)
            tree = BlockRows.of(runner, hidden).tree(logits, temperatures, NODES)
            truth = text[root + 1 :]
            of_root[root] = max(len(path) for path in tree.paths if path == truth[: len(path)])
        root = begin
        while root < len(text) - 1:
            accepted.append(of_root[root])
            root += of_root[root] + 1
    found = accepted_drafts(trained, rows_of(trained, every_root(texts)), NODES)
    assert sorted(found) == sorted(accepted)
    assert len(set(accepted)) > 2, "the drafts are neither all right nor all wrong"


def test_a_calibration_finds_the_temperature_of_the_ar_view():
    """Where the logits of a view are twice as large, its inverse temperatures are half as large."""
    decoder = with_head("qwen3")
    with torch.no_grad():
        decoder.draft_head.output.zero_()
    blocks = every_root(greedy_texts(prepared("qwen3")))
    states = states_of(decoder, blocks)
    found, doubled = (
        fitted(
            decoder, head_rows(decoder, replace(states, hidden_SKD=states.hidden_SKD * factor), INVERSE_TEMPERATURES)
        )
        for factor in (1, 2)
    )
    low, high = INVERSE_TEMPERATURES[0], INVERSE_TEMPERATURES[-1]
    assert any(low < before < high for before in found)
    for before, after in zip(found, doubled, strict=True):
        if before < high:
            assert after == pytest.approx(max(before / 2, low), rel=0.2)
    calibrate(decoder, joined([rows_of(decoder, blocks)])[:0])
    assert decoder.draft_temperatures() == pytest.approx([1 / typical_inverse_temperature(row) for row in range(M)])


@pytest.mark.parametrize("headless", [False, True])
def test_fitted_temperatures_are_likelier_than_all_others(headless):
    """By brute force over all of them, on the rows of the first offsets, whose weights do not depend on the others."""
    decoder = with_head("qwen3")
    if headless:
        decoder.draft_head = None
    rows = rows_of(decoder, every_root(greedy_texts(prepared("qwen3"))))
    found = fitted(decoder, rows)

    def likelihood(row, inverse, weights):
        total, shares = 0.0, []
        for block, weight in enumerate(weights):
            if row >= int(rows.counts_S[block]):
                shares.append(0.0)
                continue
            at = torch.tensor([block]), torch.tensor([row])
            logits = rows.logits_SMC[block, row].clone()
            if row and not headless:
                logits += corrections(decoder, rows, *at)[0]
            which = INVERSE_TEMPERATURES.index(inverse)
            log_z = torch.cat((logits * inverse, rows.rests_SMI[block, row, which : which + 1])).logsumexp(0)
            by_token = dict(zip(rows.candidates_SMC[block, row].tolist(), logits.tolist(), strict=True))
            chosen, text = int(rows.chosen_SM[block, row]), int(rows.text_SL[block, row + 1])
            total += weight * float(by_token.get(chosen, float(rows.chosen_logits_SM[block, row])) * inverse - log_z)
            shares.append(weight * math.exp(by_token[text] * inverse - float(log_z)) if text in by_token else 0.0)
        return total, shares

    weights = [1.0] * len(rows)
    for row in range(3):
        tried = {inverse: likelihood(row, inverse, weights) for inverse in INVERSE_TEMPERATURES}
        best = max(tried, key=lambda inverse: tried[inverse][0])
        assert found[row] == best
        weights = tried[best][1]
