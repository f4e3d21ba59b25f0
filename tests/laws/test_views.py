"""Laws 3, 4 and 7 for the two views.

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
from orthrus.config import PAGE, DecodingConfig, SamplingParams
from orthrus.decoding.engine import generate
from orthrus.masks import attends, block_bias, causal_bias, first_keys
from orthrus.model import families
from orthrus.runner.layout import Root
from orthrus.runner.runner import Runner

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
    ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    ("gemma3_text", {"tie_word_embeddings": True, "hidden_size": 96, "sliding_window": 1}),
    ("phi3", {"sliding_window": None, "partial_rotary_factor": 0.75}),
    ("qwen3_moe", {"norm_topk_prob": False, "decoder_sparse_step": 2, "num_experts_per_tok": 6}),
    ("ministral", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("stablelm", {"qk_layernorm": False, "use_parallel_residual": False}),
    ("hunyuan_v1_dense", {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}),
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
    peer.save_pretrained(tmp_path)
    runner = Runner.prepare(hub.load_decoder(str(tmp_path), torch.float32))
    for seed, length in enumerate((3, 17, 200)):
        request = tiny.request(length, new=24, seed=seed)
        answer = tiny.oracle(runner, request).tokens
        text = torch.tensor([[*request.prompt, *answer]])
        with torch.no_grad():
            expected = peer(text).logits
        torch.testing.assert_close(tiny.ar(runner, text, runner.new_tables()), expected, atol=1e-4, rtol=1e-4)
        assert expected[0, length - 1 : -1].argmax(-1).tolist() == answer, "its own greedy text would be another"


@pytest.mark.parametrize("family", families.names())
def test_greedy_tokens_of_twenty_prompts_equal_those_of_transformers(family, tmp_path):
    """The argmax of transformers over a whole text of ours is the text itself, so its own greedy text would be the
    same. Every feature of the family is on, and windows are shorter than the prompts."""
    peer = AutoModelForCausalLM.from_config(tiny.hf_config(family)).float().eval()
    peer.save_pretrained(tmp_path)
    runner = Runner.prepare(hub.load_decoder(str(tmp_path), torch.float32))
    requests = [tiny.request(8 + 3 * n, new=16, seed=n, sampling=SamplingParams()) for n in range(20)]
    steps = generate(runner, requests, DecodingConfig(cycle="ar", batch_size=10), tiny.LIMITS)
    texts = {step.sequence.index: step.sequence.tokens for step in steps if step.sequence.finish_reason}
    for number, request in enumerate(requests):
        text = torch.tensor([[*request.prompt, *texts[number]]])
        with torch.no_grad():
            greedy = peer(text[:, :-1]).logits[0, len(request.prompt) - 1 :].argmax(-1)
        assert texts[number] == greedy.tolist()


@pytest.mark.parametrize("family", families.names())
def test_both_views_equal_the_plain_reference(family):
    plain, runner = tiny.decoder(family), tiny.runner(family)
    tokens = torch.tensor(tiny.request(60).prompt)
    cache = runner.new_tables()
    logits = tiny.ar(runner, tokens[None], cache)[0]
    torch.testing.assert_close(logits, reference.forward(plain, tokens), atol=2e-4, rtol=2e-4)
    for root, block in itertools.product((1, 20, 59), (2, 8)):
        cache = runner.new_tables()
        tiny.ar(runner, tokens[None, :root], cache, rows=[])
        cache[0].commit(root)
        logits = runner.diffuse([int(tokens[root])], block, cache, rows=block)[0]
        expected = reference.forward(plain, tokens, root=root, block=block)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=2e-4)


def test_requested_logit_rows_equal_those_of_the_whole_pass():
    runner = tiny.runner("llama")
    tokens = torch.tensor([tiny.request(9).prompt, tiny.request(9, seed=1).prompt])
    whole = tiny.ar(runner, tokens, runner.new_tables(2))
    some = tiny.ar(runner, tokens, runner.new_tables(2), rows=[7, 0])
    assert torch.equal(some, whole[:, [7, 0]])


@pytest.mark.parametrize("window", [None, 1, 4, 30])
@pytest.mark.parametrize("rows", [1, 2, 5, 16])
def test_masks_equal_their_brute_force_grids(rows, window):
    lengths, span, width, chain = [0, 1, 13, 40], 96, 3, list(range(-1, rows - 1))
    causal = causal_bias(lengths, rows, rows + 3, span, torch.ones(1), window)
    slots = [length + rows + 9 for length in lengths]
    own = [(slot, slot + width) for slot in slots]
    like = torch.ones(1)
    roots = [block_bias([length + row for length in lengths], own, width, span, like, window) for row in range(rows)]
    assert causal.shape == (len(lengths), 1, rows + 3, span)
    assert roots[0].shape == (len(lengths), 1, width, span)
    for b, r, s in itertools.product(range(len(lengths)), range(rows), range(span)):
        assert (causal[b, 0, r, s] == 0) == attends(rows - 1 - r, s, lengths[b], chain, window)
        before = s != lengths[b] + r and attends(r, s, lengths[b], chain, window)
        inside = slots[b] <= s < slots[b] + width
        assert (roots[r][b, 0, :, s] == 0).tolist() == [before or inside] * width


def test_a_row_of_a_tree_attends_to_its_ancestors():
    parents = [-1, 0, 0, 1, 2, 3]  # two branches from the first row
    attended = [[row for row in range(6) if attends(r, 5 + row, 5, parents)] for r in range(6)]
    assert attended == [[0], [0, 1], [0, 2], [0, 1, 3], [0, 2, 4], [0, 1, 3, 5]]
    assert all(attends(r, key, 5, parents) for r in range(6) for key in range(5))
    assert [key for key in range(11) if attends(5, key, 5, parents, 3)] == [6, 8, 10]
    assert [key for key in range(11) if attends(0, key, 5, parents, 3)] == [3, 4, 5]


def test_the_first_keys_of_a_window_are_those_of_the_rule():
    for window, length in itertools.product((1, 3, 50), (0, 1, 5, 40)):
        (start,) = first_keys([length + 1], "ar", window)
        assert [start <= key for key in range(length + 1)] == [
            attends(0, key, length, [-1], window) for key in range(length + 1)
        ]
        assert first_keys([length], "diffusion", window) == [start]
    assert first_keys([7, 9], "ar", None) == [0, 0]


@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_rows_ascend_and_attend_to_what_the_rule_allows(dtype):
    runner, lengths, tokens = tiny.runner("llama", dtype), [7, 0, 30], [[1, 2, 3], [4], [5, 6]]
    tables = runner.new_tables(3)
    for table, length in zip(tables, lengths, strict=True):
        table.reserve(length + 3)
        table.commit(length)
    rows = runner.layout.ar_rows(tokens, tables)
    assert rows.positions == [7, 8, 9, 0, 30, 31]
    assert rows.slots == [7, 8, 9, PAGE, 2 * PAGE + 30, 2 * PAGE + 31]
    assert rows.tokens[:6] == [1, 2, 3, 4, 5, 6]
    numbered = [(b, n) for b, own in enumerate(tokens) for n in range(len(own))]
    for (b, row), count in zip(numbered, rows.kv_lens, strict=True):
        assert [s < count for s in range(64)] == [attends(row, s, lengths[b], [-1, 0, 1]) for s in range(64)]
    assert rows.segments == [(0, 3, 0, 0, 0), (3, 1, 1, 0, 0), (4, 2, 2, 0, 0)]


def test_blocks_attend_to_the_keys_before_their_root_and_to_their_own():
    runner = tiny.runner("llama")
    tables = runner.new_tables(3)
    for table in tables:
        table.reserve(PAGE)
    rows = runner.layout.blocks([[Root(9, 7, 10), Root(8, 9, 12)], [], [Root(5, 30, 31)]], 2, tables, 300)
    assert rows.tokens[:6] == [9, 300, 8, 300, 5, 300]
    assert rows.positions == [7, 8, 9, 10, 30, 31]
    assert rows.slots == [10, 11, 12, 13, 2 * PAGE + 31, 2 * PAGE + 32]
    assert rows.kv_lens == [7, 7, 9, 9, 30, 30]
    assert rows.segments == [(0, 2, 0, 10, 12), (2, 2, 0, 12, 14), (4, 2, 2, 31, 33)]


def test_masks_store_one_vector_per_sequence():
    like = torch.ones(1, dtype=torch.bfloat16)
    causal = causal_bias([5, 9], 30, 32, 512, like)
    block = block_bias([12, 16], [(40, 48), (44, 52)], 8, 512, like)
    assert causal.untyped_storage().nbytes() == 2 * (32 + 512) * 2
    assert block.untyped_storage().nbytes() == 2 * 512 * 2
