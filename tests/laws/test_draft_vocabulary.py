"""A draft vocabulary changes which tokens are drafted, and no token that is generated."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import pytest
import tiny
import torch

import orthrus
from orthrus import tensor_cache
from orthrus.backends.native import kernels as native
from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import draft_vocabulary, export, hub, initial_view
from orthrus.config import DecodingConfig, DiffusionConfig, SamplingParams
from orthrus.decoding import cycle, propose
from orthrus.decoding.cycles import auto, two_pass
from orthrus.decoding.engine import generate
from orthrus.file_cache import cache_directory
from orthrus.runner.prepare import inference_copy
from orthrus.runner.runner import Runner
from orthrus.training.parameters import prepare_head

TOKENS = tuple(sorted({*range(0, tiny.VOCAB, 4), *range(200, 216)}))[:64]
KERNELS = ("native", "torch", "native int8", "torch int8", "native low precision")


def decoder(dtype="fp32", tokens=TOKENS, *, head=False):
    made = tiny.decoder("qwen3", dtype)
    made.set_view(replace(made.diffusion, draft_vocabulary=tokens))
    if head:
        prepare_head(made, 16, 0)
        with torch.no_grad():
            made.draft_head.output.copy_(torch.randn(64, 16, generator=torch.Generator().manual_seed(1)) * 2)
    return made


def prepared(dtype="fp32", kernels="native", tokens=TOKENS, *, head=False):
    fast = native.load(tiny.DTYPES[dtype], cache_directory()) if kernels.startswith("native") else None
    with mock.patch("orthrus.runner.runner.choose_attention", tiny.choose_attention):
        return Runner.prepare(
            decoder(dtype, tokens, head=head), fast, int8=kernels.endswith("int8"),
            low_precision=kernels.endswith("low precision"),
        )  # fmt: skip


def others():
    """The tokens that are not drafted."""
    return sorted({*range(tiny.VOCAB)} - {*TOKENS})


def with_prompt(runner, sequences=2):
    tables = runner.new_tables(sequences)
    runner.ar([list(range(5, 25))] * sequences, tables, logit_rows=[])
    for table in tables:
        table.commit(20)
    return tables


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_draft_logits_are_those_of_the_whole_head_and_minus_infinity_elsewhere(dtype, kernels):
    whole, restricted = (prepared(dtype, kernels, tokens) for tokens in (None, TOKENS))
    found = []
    for runner in (whole, restricted):
        drafts = runner.diffuse_rows([7, 9], 8, with_prompt(runner), rows=8)
        _, blocks, hidden = runner.ar_and_diffuse([[7, 8], [9]], [(0, 1), ()], 8, with_prompt(runner))
        assert torch.equal(blocks[0], hidden[0])
        found.append((drafts.logits.flatten(0, 1), runner.draft_logits(blocks[0].flatten(0, 1))))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one[:, list(TOKENS)], other[:, list(TOKENS)], atol=1e-5, rtol=1e-5)
        assert bool((other[:, others()] == -torch.inf).all())
    assert restricted.draft_bytes < whole.draft_bytes or not kernels.endswith("low precision")


@pytest.fixture(name="drafts")
def _drafts(monkeypatch):
    """All drafts that cycles propose from blocks."""
    found = []

    def recorded(function):
        def call(*arguments, **options):
            drafts = function(*arguments, **options)
            found.extend(drafts)
            return drafts

        return call

    for module in (two_pass, auto):
        monkeypatch.setattr(module, "draft_pass", recorded(propose.draft_pass))
    monkeypatch.setattr(cycle, "drafts_from_blocks", recorded(propose.drafts_from_blocks))
    return found


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("nodes", [0, 12])
@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.8}, {"temperature": 1.0, "logit_bias": ((5, 4.0), (8, 3.0))}]
)
@pytest.mark.parametrize("name", ["two-pass", "one-pass", "auto"])
def test_every_cycle_equals_the_oracle_and_blocks_draft_from_the_vocabulary(name, sampling, nodes, head, drafts):
    runner = prepared("bf16", head=head)
    requests = [tiny.request(9 + 4 * n, 24, n, SamplingParams(seed=n, **sampling)) for n in range(3)]
    config = DecodingConfig(cycle=name, batch_size=2, tree_nodes=nodes)
    steps = generate(runner, requests, config, tiny.LIMITS, tiny.text_of, tiny.COSTS["passes"])
    done = {step.sequence.index: step.sequence.tokens for step in steps}
    assert [done[n] for n in range(3)] == [tiny.oracle(runner, request).tokens for request in requests]
    tokens = [t for draft in drafts for t, kind in zip(draft.tokens, draft.kinds, strict=True) if kind != "lookup"]
    assert len(tokens) > 20
    assert {*tokens} <= {*TOKENS}


@pytest.mark.parametrize("name", ["two-pass", "one-pass"])
def test_drawn_drafts_have_no_probability_outside_of_the_vocabulary(name, drafts):
    request = tiny.request(11, 20, 3, SamplingParams(seed=3, temperature=0.9))
    for _ in generate(prepared(), [request], DecodingConfig(cycle=name, rule="rejection"), tiny.LIMITS):
        pass
    drawn = [q for draft in drafts for q in draft.q if q is not None and float(q.max()) < 1]  # 1 where it was looked up
    assert drawn
    assert all(float(q[others()].abs().sum()) == 0 for q in drawn)


def test_an_adapter_and_a_published_checkpoint_keep_the_vocabulary(tmp_path):
    bare, adapter = tiny.save_checkpoint(tmp_path / "bare", view=False), tmp_path / "adapter"
    made = hub.load(str(tiny.save_checkpoint(tmp_path / "whole")))
    made.decoder.set_view(replace(made.decoder.diffusion, draft_vocabulary=TOKENS))
    export.export_adapter(made, adapter, {})
    export.export_published(made, tmp_path / "published")
    export.export_published(hub.load(str(tmp_path / "published")), tmp_path / "again")
    for loaded in (hub.load(str(bare), adapter=adapter), hub.load(str(tmp_path / "again"))):
        assert loaded.decoder.diffusion.draft_vocabulary == TOKENS
        assert initial_view.give_view(loaded, None, None).draft_tokens.tolist() == [*TOKENS]
        assert inference_copy(loaded.decoder).decoder.draft_tokens.tolist() == [*TOKENS]
    assert hub.describe(str(bare), adapter).decoder.diffusion.draft_vocabulary == TOKENS
    assert hub.load(str(bare), adapter=adapter, lazily=True).unread.identity != made_without(bare, adapter)


def made_without(bare, adapter):
    """The identity of the same weights without a draft vocabulary."""
    config = json.loads((adapter / adapters.CONFIG).read_text())
    del config["draft_vocabulary"]
    (adapter / adapters.CONFIG).write_text(json.dumps(config))
    return hub.load(str(bare), adapter=adapter, lazily=True).unread.identity


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 96}, "draft_vocabulary.bitmap"),
        ({"size": 65}, "draft_vocabulary.size"),
        ({"bitmap": "not base64"}, "draft_vocabulary.bitmap"),
        ({"bitmap": draft_vocabulary.encode(tuple(range(10_000, 10_064)))["bitmap"]}, "draft_vocabulary.bitmap"),
        ({"bitmap": None}, "draft_vocabulary.bitmap is missing"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(change, message):
    field = draft_vocabulary.encode(TOKENS) | change
    with pytest.raises(ValueError, match=message):
        draft_vocabulary.decode(field, "adapter_config.json", tiny.VOCAB)


@pytest.mark.parametrize("tokens", [(), (1, 2, 3), (*range(31), 30), (-1, *range(31))])
def test_a_vocabulary_of_the_wrong_form_is_refused(tokens):
    with pytest.raises(ValueError, match=r"draft.vocabulary"):
        DiffusionConfig(8, tiny.MASK, 7, draft_vocabulary=tokens)
    with pytest.raises(ValueError, match=f"outside the vocabulary of {tiny.VOCAB}"):
        decoder(tokens=tuple(range(tiny.VOCAB - 31, tiny.VOCAB + 1)))


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_packed_weights_are_cached_with_the_head_of_the_vocabulary(quantize, tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cache, "directory", lambda: tmp_path / "packed")
    bare, adapter = tiny.save_checkpoint(tmp_path / "bare", view=False), tmp_path / "adapter"
    made = hub.load(str(tiny.save_checkpoint(tmp_path / "whole")))
    made.decoder.set_view(replace(made.decoder.diffusion, draft_vocabulary=TOKENS))
    export.export_adapter(made, adapter, {})
    fresh, restored = (orthrus.load(str(bare), adapter=str(adapter), quantize=quantize).runner for _ in range(2))
    assert list((tmp_path / "packed").iterdir())
    assert restored.draft_bytes == fresh.draft_bytes
    assert restored.draft_weights.head.shape == (len(TOKENS), 64)
    logits = [runner.diffuse([7, 9], 8, with_prompt(runner), rows=8) for runner in (fresh, restored)]
    assert torch.equal(*logits)
