"""Laws 3 and 4 for training: the step equals its plain twin, decoding sees what training saw, nothing else learns."""

from __future__ import annotations

import itertools

import pytest
import reference
import tiny
import torch

from orthrus.model import families
from orthrus.training import objectives
from orthrus.training.step import Blocks, step, visible

ROOTS = (3, 9, 10, 24)


def trainable(family):
    """A fresh unprepared decoder whose diffusion view requires gradients."""
    made = tiny.on_device(tiny.decoder(family, prepared=False), torch.device("cpu"))
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(".diffusion." in name)
    return made


def plain_loss(decoder, blocks, objective):
    """The objective written with autograd, block by block, over the plain reference forward."""
    teacher = reference.forward(decoder, blocks.tokens_T).detach().log_softmax(-1)
    losses = []
    for root in blocks.roots_S.tolist():
        rows = reference.forward(decoder, blocks.tokens_T, root=root, block=blocks.block_size)
        for row, position in enumerate(range(root, root + blocks.trained_rows)):
            log_q, log_p = rows[row].log_softmax(-1), teacher[position]
            target = int(blocks.tokens_T[position + 1])
            losses.append(-log_q[target] if objective == "cross-entropy" else (log_p.exp() * (log_p - log_q)).sum())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("trained_rows", [7, 8])
@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("family", families.names())
def test_loss_and_every_gradient_equal_the_plain_twin(family, objective, trained_rows):
    blocks = Blocks(torch.tensor(tiny.request(40).prompt), torch.tensor(ROOTS), 8, trained_rows)
    fast, slow = trainable(family), trainable(family)
    loss = step(fast, blocks, objectives.load(objective)).loss
    expected = plain_loss(slow, blocks, objective)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    for (name, one), (_, other) in zip(fast.named_parameters(), slow.named_parameters(), strict=True):
        if ".diffusion." in name:
            torch.testing.assert_close(
                one.grad, other.grad, atol=2e-5, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
            )
        else:
            assert one.grad is None, f"{name} is frozen"


@pytest.mark.parametrize("family", families.names())
def test_a_block_in_training_is_the_block_in_decoding(family):
    """Agreement per offset, computed from training-time logits, is that of `diffuse` at the same roots."""
    tokens, decoder = torch.tensor(tiny.request(40).prompt), tiny.decoder(family)
    found = step(trainable(family), Blocks(tokens, torch.tensor(ROOTS), 8, 7), objectives.load("kl")).agreement_M
    agreed = torch.zeros(7)
    teacher = decoder.ar(tokens[None], decoder.new_cache(1).window(0, 1))[0].argmax(-1)
    for root in ROOTS:
        cache = decoder.new_cache(1)
        decoder.ar(tokens[None, :root], cache.window(0, 1), rows=[])
        cache.commit(0, root)
        drafts = decoder.diffuse([int(tokens[root])], 8, cache.window(0, 1), rows=7)[0].argmax(-1)
        agreed += drafts == teacher[root : root + 7]
    assert torch.equal(found, agreed / len(ROOTS))


def test_the_mask_equals_its_brute_force_grid():
    blocks = Blocks(torch.arange(30), torch.tensor(ROOTS[:3]), 4, 3)
    grid = visible(blocks)
    for row, key in itertools.product(range(12), range(30 + 12)):
        same_block = key >= 30 and (key - 30) // 4 == row // 4
        assert grid[row, key] == (same_block or key < min(30, ROOTS[row // 4]))


def test_impossible_blocks_are_refused():
    with pytest.raises(ValueError, match="without a single root"):
        Blocks(torch.arange(30), torch.tensor([], dtype=torch.long), 8, 7)
    with pytest.raises(ValueError, match="inside the text"):
        Blocks(torch.arange(30), torch.tensor([23]), 8, 7)
    with pytest.raises(ValueError, match="cross-entropy, kl"):
        objectives.load("mse")
