"""Laws 3, 4 and 7: the views are what they claim to be.

The AR view equals transformers; both views equal a plain reference; masks equal their brute-force grids.
"""

from __future__ import annotations

import itertools

import pytest
import reference
import tiny
import torch
from transformers import AutoModelForCausalLM

from orthrus.checkpoint import hub
from orthrus.masks import beside_bias, block_bias, causal_bias, sees
from orthrus.model import families

ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 10000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0},
}  # fmt: skip
CASES = [(family, {}) for family in families.names()] + [
    *[("llama", {"rope_parameters": rope}) for rope in ROPES.values()],
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
]


@pytest.mark.parametrize(
    ("family", "overrides"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain"
)
def test_ar_view_equals_transformers(family, overrides, tmp_path):
    peer = AutoModelForCausalLM.from_config(tiny.hf_config(family, **overrides)).float().eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    peer.generation_config.pad_token_id = 0
    peer.save_pretrained(tmp_path)
    decoder = hub.load_decoder(str(tmp_path), torch.float32).prepare()
    for seed, length in enumerate((3, 17, 200)):
        request = tiny.request(length, new=24, seed=seed)
        prompt = torch.tensor([request.prompt])
        with torch.no_grad():
            expected = peer(prompt).logits
            tokens = peer.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=24)
        torch.testing.assert_close(
            decoder.ar(prompt, decoder.new_cache(1).window(0, 1)), expected, atol=1e-4, rtol=1e-4
        )
        assert tiny.oracle(decoder, request).tokens == tokens[0, length:].tolist()


@pytest.mark.parametrize("family", families.names())
def test_both_views_equal_the_plain_reference(family):
    plain, decoder = tiny.decoder(family, prepared=False), tiny.decoder(family)
    tokens = torch.tensor(tiny.request(60).prompt)
    cache = decoder.new_cache(1)
    logits = decoder.ar(tokens[None], cache.window(0, 1))[0]
    torch.testing.assert_close(logits, reference.forward(plain, tokens), atol=2e-4, rtol=2e-4)
    for root, block in itertools.product((1, 20, 59), (2, 8)):
        cache = decoder.new_cache(1)
        decoder.ar(tokens[None, :root], cache.window(0, 1), rows=[])
        cache.commit(0, root)
        logits = decoder.diffuse([int(tokens[root])], block, cache.window(0, 1), rows=block)[0]
        expected = reference.forward(plain, tokens, root=root, block=block)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


def test_rows_asked_for_are_the_rows_of_the_whole_pass():
    decoder = tiny.decoder("llama")
    tokens = torch.tensor([tiny.request(9).prompt, tiny.request(9, seed=1).prompt])
    whole = decoder.ar(tokens, decoder.new_cache(2).window(0, 2))
    some = decoder.ar(tokens, decoder.new_cache(2).window(0, 2), rows=[7, 0])
    assert torch.equal(some, whole[:, [7, 0]])


@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_masks_equal_their_brute_force_grids(rows):
    lengths, span, width, chain = [0, 1, 13, 40], 96, 3, list(range(-1, rows - 1))
    causal = causal_bias(lengths, rows, rows + 3, span, torch.ones(1))
    block = block_bias(lengths, rows, span, torch.ones(1))
    slots = [length + rows + 9 for length in lengths]
    beside = [beside_bias(causal, rows, row, slots, width) for row in range(rows)]
    assert causal.view.shape == (len(lengths), 1, rows + 3, span)
    assert block.view.shape == (len(lengths), 1, rows, span)
    for b, r, s in itertools.product(range(len(lengths)), range(rows), range(span)):
        assert (causal.view[b, 0, r, s] == 0) == sees(rows - 1 - r, s, lengths[b], chain)
        assert (block.view[b, 0, r, s] == 0) == (s < lengths[b] + rows)
        opened, own = beside[r].open(), slots[b] <= s < slots[b] + width
        before = s != lengths[b] + r and sees(r, s, lengths[b], chain)
        assert (opened[b, 0, :, s] == 0).tolist() == [before or own] * width
        beside[r].close()


def test_a_row_of_a_tree_sees_its_ancestors():
    parents = [-1, 0, 0, 1, 2, 3]  # two branches from the first row
    seen = [[row for row in range(6) if sees(r, 5 + row, 5, parents)] for r in range(6)]
    assert seen == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 1, 3, 5]]
    assert all(sees(r, key, 5, parents) for r in range(6) for key in range(5))


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_rows_are_told_what_the_rule_lets_them_see(dtype):
    layout, lengths, tokens = tiny.decoder("llama", dtype)._layout, [7, 0, 30], [[1, 2, 3], [4], [5, 6]]
    sight = layout.ar(tokens, lengths, 64).sight
    rows = [(b, len(own) - 1 - n) for b, own in enumerate(tokens) for n in range(len(own))]
    for (b, row), seen in zip(rows, sight.seen_N.tolist(), strict=True):
        assert [s < seen for s in range(64)] == [sees(row, s, lengths[b], [-1, 0, 1]) for s in range(64)]
    assert sight.runs.tolist() == [[0, 3, 0, 0, 0], [3, 1, 1, 0, 0], [4, 2, 2, 0, 0]]


def test_masks_store_one_vector_per_sequence():
    causal = causal_bias([5, 9], 30, 32, 512, torch.ones(1, dtype=torch.bfloat16))
    beside = beside_bias(causal, 30, 7, [40, 44], 8)
    for bias in (causal, beside):
        assert bias.view.untyped_storage().nbytes() == 2 * (32 + 512) * 2
    assert beside.view.data_ptr() == causal.view.data_ptr() + 2 * (30 - 7)
