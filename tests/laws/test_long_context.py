"""Laws 1, 3, 5 and 7 at long contexts: with two, three and more blocks of keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

import orthrus
from orthrus.backends.native import kernels as native
from orthrus.backends.select import masked
from orthrus.backends.torch import attend_flash, attend_in_blocks
from orthrus.bench import tasks
from orthrus.checkpoint import hub
from orthrus.config import DecodingConfig, SamplingParams, StopConditions
from orthrus.decoder_config import RopeConfig
from orthrus.decoding import cycles
from orthrus.decoding.cycles import Drafting
from orthrus.decoding.engine import generate
from orthrus.decoding.rules import exact
from orthrus.decoding.sequence import Request, Sequence
from orthrus.file_cache import cache_directory
from orthrus.masks import causal_bias
from orthrus.model import families
from orthrus.model.rope import RopeTable
from orthrus.runner.runner import Runner

LENGTHS = (513, 700, 1025, 1100, 1537, 1600, 2049, 4000)
LONG = 4000


def attentions(precision, size):
    """All attention kernels of the CPU, by name."""
    by_name = {"flash": attend_flash, "in blocks": attend_in_blocks}
    kernels = native.load(tiny.DTYPES[precision], cache_directory())
    if kernels is not None and kernels.supports_ragged_attention(size):
        by_name["native"] = masked(kernels)
    return by_name


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("precision", list(tiny.DTYPES))
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 2, 16), (9, 3, 64)])
def test_attention_reaches_every_key_of_a_long_context(precision, heads, kv_heads, size, length):
    """Half of the queries are aimed at one key each, at block borders and at the end; the others are random."""
    R, span = 8, -(-length // 512) * 512
    k, v = (torch.randn(1, kv_heads, span, size).to(tiny.DTYPES[precision]) for _ in range(2))
    q = torch.randn(1, R, heads, size).to(k)
    target_keys = [length - R, (length - R) // 512 * 512, (length - R) // 512 * 512 - 1, length // 2]
    for row, key in enumerate(target_keys):
        k[0, :, key] *= 3
        aimed = 2 * size**0.5 * torch.nn.functional.normalize(k[0, :, key].float(), dim=-1)
        q[0, row] = aimed.repeat_interleave(heads // kv_heads, 0).to(q)
    bias = causal_bias([length - R], R, R, span, q)
    dense = scaled_dot_product_attention(
        q.transpose(1, 2).float(), k.float(), v.float(), bias.float().clone(), enable_gqa=True
    )[0].transpose(0, 1)
    tolerance = 5e-5 if precision == "fp32" else 0.02
    for name, attend in attentions(precision, size).items():
        output = attend(q, k, v, bias).view(R, heads, size).float()
        torch.testing.assert_close(
            output, dense, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def logits_in_chunks(runner, cache, tokens, sizes=(512,)):
    """Logits of all rows of `tokens`, prefilled in chunks of these sizes; the last size repeats."""
    logits, rest = [], torch.tensor([tokens])
    for n in range(len(tokens)):
        if not rest.shape[1]:
            break
        size = sizes[min(n, len(sizes) - 1)]
        logits.append(tiny.ar(runner, rest[:, :size], cache)[0])
        cache[0].commit(cache[0].length + len(logits[-1]))
        rest = rest[:, size:]
    return torch.cat(logits)


@pytest.fixture(scope="module", params=families.names())
def peer(request, tmp_path_factory):
    """A checkpoint of `transformers`, a text, and the logits that `transformers` computes for it."""
    directory, tokens = tmp_path_factory.mktemp("peer"), tiny.request(LONG).prompt
    made = AutoModelForCausalLM.from_config(tiny.hf_config(request.param, max_position_embeddings=8192)).float().eval()
    made.save_pretrained(directory)
    with torch.no_grad():
        return str(directory), tokens, made(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("kernels", ["native", pytest.param("torch", marks=pytest.mark.full)])
def test_logits_of_long_prompts_equal_those_of_transformers(peer, kernels):
    directory, tokens, expected = peer
    fast = native.load(torch.float32, cache_directory()) if kernels == "native" else None
    runner = Runner.prepare(hub.load_decoder(directory, torch.float32), fast)
    torch.testing.assert_close(logits_in_chunks(runner, runner.new_tables(), tokens), expected, atol=1e-4, rtol=1e-4)
    logits = logits_in_chunks(runner, runner.new_tables(), tokens[:1500], (11, 512, 300))
    torch.testing.assert_close(logits, expected[:1500], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "kernels"),
    [*((name, "native") for name in families.names()), ("qwen3", "torch"), ("llama", "native int8")],
)
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_logits_do_not_depend_on_chunking_at_long_positions(family, dtype, kernels):
    runner, tokens = tiny.runner(family, dtype, kernels=kernels), tiny.request(2047).prompt
    whole_cache, cache = runner.new_tables(), runner.new_tables()
    whole = logits_in_chunks(runner, whole_cache, tokens)
    sizes = [512, 508, *[1] * 11, 499, *[1] * 16, 500, 1]  # one by one at 1020 to 1030, 1530 to 1545 and 2046
    assert sum(sizes) == len(tokens)
    logits = logits_in_chunks(runner, cache, tokens, sizes)
    different = (logits != whole).any(dim=1).nonzero().flatten().tolist()
    assert different == []
    for one, other in zip(tiny.cached(whole_cache[0]), tiny.cached(cache[0]), strict=True):
        assert one.shape[2] == 2047 and torch.equal(one, other)


@pytest.mark.parametrize("scaling", [1.0, 1.25])
def test_rope_values_do_not_depend_on_how_the_table_grew(scaling):
    frequencies = tuple(1.0 / 10000 ** (n / 32) for n in range(32))
    config = RopeConfig(frequencies, scaling)
    at_once, stepwise = (RopeTable(config, torch.device("cpu")) for _ in range(2))
    whole = at_once.tables(5000)
    for last in (0, 511, 512, 1025, 1026, 3000, 5000):
        grown = stepwise.tables(last)
        assert len(grown[0]) == len(grown[1]) > last
    assert all(torch.equal(one[:5001], other[:5001]) for one, other in zip(whole, grown, strict=True))
    positions = torch.tensor([0, 1, 511, 512, 1023, 1024, 1025, 1536, 2047, 2048, 4095, 5000])
    cos, sin = (table[:, 0] for table in at_once.rows(positions, 5000))
    angles = torch.outer(positions.double(), torch.tensor(frequencies, dtype=torch.float64))
    expected_cos, expected_sin = scaling * angles.cos(), scaling * angles.sin()
    torch.testing.assert_close(cos.double(), torch.cat((expected_cos, expected_cos), -1), atol=1e-3, rtol=0)
    torch.testing.assert_close(sin.double(), torch.cat((-expected_sin, expected_sin), -1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("cycle", cycles.names())
@pytest.mark.parametrize("dtype", list(tiny.DTYPES))
def test_long_sequences_that_join_and_leave_equal_the_oracle(dtype, cycle):
    runner = tiny.runner("qwen3", dtype)
    requests = [
        tiny.request(length, new, seed, SamplingParams(temperature=0.8 * (seed % 2), seed=seed))
        for seed, (length, new) in enumerate([(40, 3), (530, 30), (1100, 12), (1030, 26), (1015, 30), (505, 25)])
    ]
    truths = [tiny.oracle(runner, request).tokens for request in requests]
    steps = generate(
        runner, requests, DecodingConfig(cycle=cycle, batch_size=3), tiny.LIMITS, costs=tiny.COSTS["passes"]
    )
    done = {s.sequence.index: s.sequence.tokens for s in steps if s.sequence.finish_reason}
    assert [done[n] for n in range(len(requests))] == truths


def test_all_cycles_give_equal_tokens_up_to_the_end_of_the_context(pytestconfig):
    """One prefill, then every cycle from the same cache up to the last position."""
    model = orthrus.load("smollm2-demo")
    text = " ".join(str(prompt.prompt) for prompt in tasks.load("gsm8k"))
    assert model.limits.max_positions == 8192
    max_positions = 8192 if pytestconfig.getoption("--full") else 2048
    limits = replace(model.limits, max_positions=max_positions)
    prompt = tuple(model.tokenizer(text).input_ids[: max_positions - 12])
    assert len(prompt) == max_positions - 12
    request = Request(prompt, SamplingParams(), StopConditions(max_new_tokens=100))
    first = Sequence(0, request, limits)
    tiny.prefill(model.runner, first, exact)
    tokens = {}
    for name in ("ar", "two-pass", "one-pass"):
        sequence = Sequence(0, request, limits)
        first.table.commit(len(prompt))
        sequence.begin(first.table)
        sequence.start(first.tokens[0])
        while sequence.finish_reason is None:
            tiny.decode(model.runner, name, sequence, Drafting(8, nodes=16), exact)
        tokens[name] = sequence.tokens
        assert sequence.finish_reason == "length" and sequence.length == max_positions
    assert tokens["two-pass"] == tokens["one-pass"] == tokens["ar"]
    assert len(tokens["ar"]) == 12
