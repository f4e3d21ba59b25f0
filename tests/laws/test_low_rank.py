"""Low-rank views: merged they are ordinary views, at full rank they lose nothing, and their training starts, learns and
resumes like that of full ones."""

from __future__ import annotations

import pytest
import tiny
import torch
from test_training import OPS, packed

import orthrus
from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import export, hub, initial_view, low_rank
from orthrus.model import families
from orthrus.runner.prepare import inference_copy
from orthrus.training import objectives
from orthrus.training.step import step

FULL = 64
"""The rank of the projections of the tiny models."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return tiny.save_checkpoint(tmp_path_factory.mktemp("low") / "bare", "qwen2", view=False)


def weights(decoder):
    """The diffusion view as an adapter with full projections would hold it."""
    return export.tensors(decoder, "diffusion")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name, tensor in one.items() if not torch.equal(tensor, other[name])] == []


@pytest.mark.parametrize("family", families.names())
def test_at_full_rank_the_factors_reproduce_the_view_and_half_of_it_is_the_nearest(family):
    made = tiny.decoder(family)
    before = weights(made)
    low_rank.set_rank(made, FULL)
    assert low_rank.rank_of(made) == FULL
    for name, tensor in weights(made).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-6, rtol=1e-5)
    low_rank.set_rank(made, 32)
    base = export.tensors(made, "ar")
    for layer, reference in zip(made.decoder_layers, tiny.decoder(family).decoder_layers, strict=True):
        for name in low_rank.MAPS:
            change = getattr(reference.diffusion, name).weight - getattr(reference.ar, name).weight
            lost = getattr(layer.diffusion, name).weight - getattr(reference.diffusion, name).weight
            smallest = torch.linalg.svdvals(change)[32:].square().sum()
            torch.testing.assert_close(lost.square().sum(), smallest, atol=1e-6, rtol=1e-4)
    low_rank.set_rank(made, None)
    assert low_rank.rank_of(made) is None
    assert_equal(base, export.tensors(made, "ar"))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("family", families.names())
def test_an_adapter_of_factors_drafts_with_the_bits_of_the_merged_view(family, int8, tmp_path):
    whole = tiny.save_checkpoint(tmp_path / "whole", family)
    made = hub.load(str(whole), dtype=torch.float32)
    low_rank.set_rank(made.decoder, 8)
    export.export_adapter(made, tmp_path / "low", {}, int8=int8)
    assert adapters.read_config(tmp_path / "low").rank == 8
    read = hub.load(str(whole), adapter=tmp_path / "low", dtype=torch.float32)
    assert low_rank.rank_of(read.decoder) == 8
    if not int8:
        assert_equal(weights(made.decoder), weights(read.decoder))
    export.export_published(read, tmp_path / "published")
    low_rank.set_rank(read.decoder, None)
    export.export_adapter(read, tmp_path / "merged", {})
    loaded = [
        orthrus.load(str(place), adapter=adapter, dtype=torch.float32, cache=False)
        for place, adapter in ((whole, tmp_path / "low"), (whole, tmp_path / "merged"), (tmp_path / "published", None))
    ]
    logits, answers = [], []
    for model in loaded:
        tables = model.runner.new_tables(2)
        model.runner.ar([[5, 6, 7, 8]] * 2, tables, logit_rows=[])
        for table in tables:
            table.commit(4)
        logits.append(model.runner.diffuse_rows([7, 9], 8, tables, rows=8).logits)
        answers.append(model.generate([5, 6, 7], max_new_tokens=12, cycle="two-pass"))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    plain = loaded[0].generate([5, 6, 7], max_new_tokens=12, cycle="ar").tokens
    assert [answer.tokens for answer in answers] == [plain] * 3
    assert answers[0].statistics.accepted == answers[1].statistics.accepted


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3", "stablelm"])
def test_a_step_trains_the_factors_by_the_gradient_of_the_merged_weights(family):
    low, full = tiny.decoder(family), tiny.decoder(family)
    low_rank.set_rank(low, 8)
    low_rank.set_rank(full, 8)
    low_rank.set_rank(full, None)
    losses = []
    for made in (low, full):
        for name, parameter in made.named_parameters():
            parameter.requires_grad_(".diffusion." in name)
        losses.append(step(made, packed(), objectives.load("kl"), OPS[True]()).loss)
        losses[-1].backward()
    assert torch.equal(*losses)
    for one, other in zip(low.decoder_layers, full.decoder_layers, strict=True):
        for name in low_rank.MAPS:
            factored, plain = getattr(one.diffusion, name), getattr(other.diffusion, name)
            torch.testing.assert_close(factored.up.grad, plain.weight.grad @ factored.down.T, atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(factored.down.grad, factored.up.T @ plain.weight.grad, atol=1e-6, rtol=1e-4)
            if plain.bias is not None:
                assert torch.equal(factored.bias.grad, plain.bias.grad)
        assert getattr(one.ar.qkv.weight, "grad", None) is None


def test_a_new_low_rank_view_is_a_copy_of_the_backbone_that_can_learn(bare):
    made = initial_view.give_view(hub.load(str(bare)), 4, tiny.MASK)
    copies = weights(made)
    low_rank.set_rank(made, 8, seed=3)
    assert_equal(copies, weights(made))
    first = made.decoder_layers[0].diffusion.qkv
    assert not first.up.any()
    assert 0.05 < float(first.down.float().std()) < 0.25
    again = initial_view.give_view(hub.load(str(bare)), 4, tiny.MASK)
    low_rank.set_rank(again, 8, seed=3)
    assert torch.equal(first.down, again.decoder_layers[0].diffusion.qkv.down)


def test_a_view_of_a_lower_rank_keeps_room_to_learn():
    """A column and a row that were both zero would have no gradient."""
    made = tiny.decoder("qwen3")
    low_rank.set_rank(made, 4)
    before = weights(made)
    low_rank.set_rank(made, 12)
    for name, tensor in weights(made).items():
        torch.testing.assert_close(tensor, before[name], atol=1e-5, rtol=1e-5)
    factored = made.decoder_layers[1].diffusion.o
    assert not factored.up[:, 4:].any()
    assert bool(factored.down[4:].abs().sum(dim=1).gt(1).all())


@pytest.mark.parametrize("rank", [0, -1, FULL + 1])
def test_a_rank_beyond_that_of_the_projections_is_refused(rank):
    with pytest.raises(ValueError, match=rf"rank of a view must lie in 1\.\.{FULL}"):
        low_rank.set_rank(tiny.decoder("qwen3"), rank)


def test_a_copy_for_inference_is_merged_and_leaves_the_factors():
    made = tiny.decoder("qwen3", "bf16")
    low_rank.set_rank(made, 8)
    expected = weights(made)
    runner = inference_copy(made)
    assert low_rank.rank_of(made) == 8
    assert low_rank.rank_of(runner.decoder) is None
    assert_equal(expected, weights(made))


def test_the_mean_of_low_rank_views_is_that_of_their_weights(tmp_path):
    whole = tiny.save_checkpoint(tmp_path / "whole")
    views = [hub.load(str(whole), dtype=torch.float32) for _ in range(2)]
    for rank, made in zip((4, 16), views, strict=True):
        low_rank.set_rank(made.decoder, rank)
    one, other = (weights(made.decoder) for made in views)
    export.average(views[0], views[1:])
    for name, tensor in weights(views[0].decoder).items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)
