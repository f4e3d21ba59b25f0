"""Tiny random models of every family, and drafts that are never, sometimes or always right."""

from __future__ import annotations

import functools
import json
import random
from dataclasses import replace
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from orthrus.backends import select
from orthrus.backends.native import build
from orthrus.backends.native import kernels as native
from orthrus.checkpoint import export, published
from orthrus.checkpoint.hub import copy_projections
from orthrus.config import PAGE, DiffusionConfig, SamplingParams, StopConditions
from orthrus.decoding import cycle, cycles
from orthrus.decoding.plan import PassPlan
from orthrus.decoding.planning import calibration, measure
from orthrus.decoding.planning.cost_model import CostModel
from orthrus.decoding.reference import OracleResult, autoregress
from orthrus.decoding.sequence import Limits, Request
from orthrus.drafters.tree import DraftTree
from orthrus.file_cache import cache_directory
from orthrus.model import families
from orthrus.model.decoder import Decoder
from orthrus.quantization import GroupQuantized
from orthrus.runner.runner import Runner
from orthrus.training.ops import NativeOps

CORE = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3")
"""The families that meet most cases of a law without `--full`; each of the others meets one case of every law."""
VOCAB = 320
MASK = 300
END = 319
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEMMA = {
    "head_dim": 16, "tie_word_embeddings": False, "sliding_window": 7, "query_pre_attn_scalar": 24,
    "final_logit_softcapping": 5.0,
    "sliding_window_pattern": 2,
}  # fmt: skip
DIFFERENCES = {
    "qwen3": {"head_dim": 16},
    "qwen2": {},
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 7},
    "smollm3": {"attention_bias": True, "no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 7},
    "phi3": {
        "sliding_window": 7,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "gemma2": GEMMA | {"attn_logit_softcapping": 2.0},
    "gemma3_text": GEMMA
    | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        "sliding_window": 40,
    },
    "gpt_oss": {
        "num_hidden_layers": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 7,
    },
    "mixtral": {"head_dim": 16, "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 7},
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
        "mlp_only_layers": [1],
        "use_sliding_window": True,
        "sliding_window": 7,
    },
    "granite": {
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.3125,
        "residual_multiplier": 0.625,
        "logits_scaling": 0.5,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "gemma": {"head_dim": 16, "intermediate_size": 128, "tie_word_embeddings": False},
    "ministral": {"head_dim": 16, "sliding_window": 7},
    "seed_oss": {"head_dim": 32, "attention_out_bias": True},
    "ernie4_5": {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False},
    "glm4": {
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "exaone4": {"sliding_window": 7, "sliding_window_pattern": 2},
    "starcoder2": {"intermediate_size": 128, "sliding_window": 7, "tie_word_embeddings": False},
    "stablelm": {
        "use_qkv_bias": True,
        "qk_layernorm": True,
        "use_parallel_residual": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    },
    "cohere2": {"sliding_window": 7, "sliding_window_pattern": 2, "tie_word_embeddings": False, "logit_scale": 1.5},
    "nemotron": {
        "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "hunyuan_v1_dense": {
        "head_dim": 16,
        "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "rope_theta": 1e4, "factor": 1.0},
    },
}
"""Config overrides by family, which switch its features on: windows are shorter than prompts. A family without features
of its own needs no entry."""


def hf_config(family, **overrides):
    return AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "eos_token_id": END, "bos_token_id": None, "pad_token_id": None, "initializer_range": 0.15,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            **DIFFERENCES.get(family, {}), **overrides,
        },
    )  # fmt: skip


def randomise(decoder, seed=0):
    """Random weights, large enough for peaked logits, and a diffusion view that partly agrees with the AR view."""
    generator = torch.Generator().manual_seed(seed)
    order = {"embedding.weight": 0, "norm.weight": 1, "norm.bias": 1}  # so that no test depends on the order of modules
    drawn = sorted(decoder.named_parameters(), key=lambda pair: order.get(pair[0], 2))
    with torch.no_grad():
        for name, parameter in drawn:
            values = torch.randn(parameter.shape, generator=generator)
            ones = 1 - decoder.config.norm_offset if name.endswith(("norm", "norm.weight")) else 0
            parameter.copy_(ones + values / 10 if "norm" in name else values * 1.5 / parameter.shape[-1] ** 0.5)
        copy_projections(decoder)
        for name, parameter in decoder.named_parameters():
            if ".diffusion." in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.02)
    return decoder


def on_device(made, device):
    """The same unprepared decoder on another device."""
    moved = Decoder(made.config, made.diffusion, made.dtype, device)
    moved.load_state_dict(made.state_dict())
    return moved


def decoder(family="qwen3", dtype="fp32", block=8):
    """A decoder with plain random weights and a diffusion view."""
    config = families.decoder_config(hf_config(family))
    return randomise(Decoder(config, DiffusionConfig(block, MASK, block - 1), DTYPES[dtype], torch.device("cpu")))


def native_ops(dtype):
    """The operations of training in C. Without them `ops.load` falls back to torch, which a test must not."""
    return NativeOps(build.library(dtype, cache_directory()))


@functools.cache
def runner(family="qwen3", dtype="fp32", block=8, prepared=True, kernels="native"):
    """A runner of such a decoder. It is cached, and all tests share it."""
    made = decoder(family, dtype, block)
    if not prepared:
        return Runner(made)
    if kernels.endswith("rounded"):
        for layer in made.decoder_layers:
            for linear in (layer.diffusion.qkv, layer.diffusion.o):
                linear.weight.copy_(GroupQuantized.rounded(linear.weight).values())
    fast = native.load(DTYPES[dtype], cache_directory()) if kernels.startswith("native") else None
    with mock.patch("orthrus.runner.runner.choose_attention", choose_attention):
        return Runner.prepare(
            made, fast, int8=kernels.endswith("int8"), low_precision=kernels.endswith("low precision")
        )


_choices = {}


def choose_attention(config, dtype, device, kernels):
    """As the product's, but probed once for models of one shape: in most of them that takes longer than a test. What is
    kept holds no kernels, so that models are freed; a choice that the kernels state something about is not kept."""
    shape = config.heads, config.kv_heads, config.head_dim, config.attention_scale, config.attention_soft_cap
    features = tuple(config.features), config.windows != (None,)
    key = shape, features, dtype, device, type(kernels), select.attend_flash, torch.get_num_threads()
    choice = _choices.get(key)
    if choice is None:
        before = kernels.notice
        choice = select.choose_attention(config, dtype, device, kernels)
        if kernels.notice == before:
            _choices[key] = replace(choice, attend=None) if choice.ragged else choice
    return replace(choice, attend=select.masked(kernels)) if choice.ragged else choice


_tables = {}


def measure_costs(runner, *interrupted):
    """As the product's, but once for models of one kind: it takes up to six seconds, and beside another process of the
    suite each table is disturbed, which benchmarks answer by measuring again."""
    key = calibration.Calibration(runner).key
    if interrupted or key not in _tables:
        _tables[key] = measure.measure(runner, *interrupted)
    return _tables[key]


def ar(made, tokens, tables, rows=None):
    """Logits [B, R, V] of an AR pass over tokens [B, R], a tensor or lists of one length."""
    lists = tokens.tolist() if isinstance(tokens, torch.Tensor) else [list(own) for own in tokens]
    return torch.stack(made.ar(lists, tables, logit_rows=rows))


def cached(table):
    """The cached keys and values of a sequence, each [L, G, T, E]."""
    slots = table.slots(0, table.length)
    return table.cache.keys[:, :, slots], table.cache.values[:, :, slots]


def in_pages(stored_BGTE, tables_BP):
    """Keys or values of sequences as a cache holds them in these pages: [G, S, E]; other pages hold ones."""
    _, G, _, E = stored_BGTE.shape
    cache = torch.ones(G, int(tables_BP.max()) + 1, PAGE, E, dtype=stored_BGTE.dtype)
    cache[:, tables_BP.flatten()] = stored_BGTE.transpose(0, 1).reshape(G, -1, PAGE, E)
    return cache.flatten(1, 2)


def prefill(made, sequence, rule, width=0):
    """Prefill a sequence in a cache of its own, and append its first token."""
    sequence.begin(*made.new_tables())
    while not sequence.tokens:
        cycle.run(made, [cycle.prefill_job(sequence, made.max_rows, lambda: width)], rule)


def decode(made, name, sequence, drafting, rule):
    """One pass of a cycle over a sequence that decodes."""
    return cycle.run(made, cycle.decoding_jobs(cycles.load(name), made, [sequence], drafting, rule), rule)


COSTS = {
    "passes": CostModel(((1, 1.0), (8, 1.1), (128, 3.0)), ((1, 1.05), (8, 1.15), (128, 3.05)), 0.2, 0.01, 0.0, 0.0),
    "rows": CostModel(((1, 1.0), (8, 2.0), (128, 30.0)), ((1, 1.0), (8, 2.0), (128, 30.0)), 0.1, 0.3, 0.001, 0.001),
    "hopeless": CostModel(((1, 1.0), (8, 4.0), (128, 60.0)), ((1, 4.0), (8, 7.0), (128, 63.0)), 3.0, 3.0, 0.0, 0.0),
}
"""Cost tables for the planner: expensive passes, expensive rows, and drafting that cannot pay."""


def random_costs(seed):
    """A random cost table: rows, blocks, diffusion passes and keys may each be nearly free or very expensive."""
    rng = random.Random(seed)

    def price(low, high):
        return 10 ** rng.uniform(low, high)

    row, drafting, key = price(-4, 0), price(-2, 0.5), price(-5, -2)
    rows = tuple((count, 1 + row * (count - 1)) for count in (1, 2, 4, 8, 16, 32, 64, 128))
    return CostModel(
        rows,
        tuple((count, drafting * seconds) for count, seconds in rows[1:]),
        block_overhead=rng.choice([0.0, price(-3, 0)]),
        block=rng.choice([0.0, price(-3, 0)]),
        key=key,
        block_key=key * rng.choice([0.0, price(-1, 2)]),
        row_key=key * rng.choice([0.0, price(-1, 1)]),
    )


LIMITS = Limits(VOCAB, 2048, frozenset([END]))


def text_of(tokens):
    """A toy detokeniser: token 7 is 'h7 ', so that stop strings can cross token borders."""
    return "".join(f"{chr(97 + token % 26)}{token} " for token in tokens)


def request(length=11, new=40, seed=0, sampling=None, **stop):
    rng = random.Random(seed)
    prompt = tuple(rng.randrange(290) for _ in range(length))
    return Request(prompt, sampling or SamplingParams(seed=seed), StopConditions(new, **stop))


def oracle(made, asked, *, seed=None, logits=False) -> OracleResult:
    seed = asked.sampling.seed if seed is None else seed
    return autoregress(made, asked, LIMITS, seed, text_of, keep_logits=logits)


def scripted(quality, continuations, seed=0, *, branches=True):
    """A replacement of `draft_pass`. Each draft equals the known continuation with probability `quality`, which may be
    a list with one entry per sequence. With `branches`, trees have random other nodes."""
    rng, quality_of = random.Random(seed), _quality_of(quality)

    def draft_pass(runner, batch, width, rule, wanted, nodes=None):
        del rule
        rows, size = min(width, runner.diffusion.trained_rows), nodes if branches else None
        truths = [continuations[sequence.index][len(sequence.tokens) :] for sequence in batch]
        return [
            scripted_draft(rng, quality_of(sequence), truth, rows, runner.config.vocab_size, size)
            if wants
            else DraftTree()
            for sequence, truth, wants in zip(batch, truths, wanted, strict=True)
        ]

    return draft_pass


def scripted_draft(rng, quality, truth, rows, vocab_size, nodes=None):
    """A chain of `rows` tokens, or a random tree of `nodes` nodes around it, in random order."""
    padded = (truth + [1] * rows)[:rows]
    tokens = [t if rng.random() < quality else (t + 1) % vocab_size for t in padded]
    return DraftTree.chain(tokens) if nodes is None else random_tree(rng, tokens, nodes, vocab_size)


def random_tree(rng, trunk, nodes, vocab_size):
    """A tree of `nodes` nodes that holds the first tokens of `trunk` as a path and other nodes at random places."""
    tokens, parents, trunk_node, on_trunk = [], [], -1, 0
    while len(tokens) < nodes:
        if on_trunk < len(trunk) and rng.random() < 0.5:
            token, parent = trunk[on_trunk], trunk_node
        else:
            token, parent = rng.randrange(vocab_size), rng.randrange(-1, len(tokens))
        if (token, parent) in zip(tokens, parents, strict=True):
            continue
        if on_trunk < len(trunk) and (token, parent) == (trunk[on_trunk], trunk_node):
            on_trunk, trunk_node = on_trunk + 1, len(tokens)
        tokens.append(token)
        parents.append(parent)
    return DraftTree.tree(tokens, parents, [rng.random() for _ in tokens])


def _quality_of(quality):
    return lambda sequence: quality[sequence.index] if isinstance(quality, list) else quality


def scripted_ahead(quality, continuations, seed=0, *, branches=True):
    """The same for `drafts_from_blocks`: one draft for each row of the block after the anchor."""
    rng, quality_of = random.Random(seed), _quality_of(quality)

    def drafts_from_blocks(runner, batch, blocks, rule, nodes=None, *, eager_logits):
        del rule, eager_logits
        drafts, vocab_size = [], runner.config.vocab_size
        for sequence, block in zip(batch, blocks, strict=True):
            rows = max(0, min(len(block.rows), runner.diffusion.trained_rows) - (sequence.length - 1 - block.root))
            truth = continuations[sequence.index][len(sequence.tokens) :]
            size = nodes if branches and rows else None
            drafts.append(scripted_draft(rng, quality_of(sequence), truth, rows, vocab_size, size))
        return drafts

    return drafts_from_blocks


class RandomPlanner:
    """A planner that returns random valid plans."""

    def __init__(self, seed, max_width):
        self._random, self._max_width = random.Random(seed), max_width

    def first_width(self, context, sharers=1):
        del context, sharers
        return self._random.choice([0, 2, self._max_width])

    def begin_pass(self, batch):
        pass

    def plan(self, batch):
        plans = self._plans([sequence.ahead for sequence in batch], [0] * len(batch))
        return [replace(plan, refresh=self._random.random() < 0.4) for plan in plans]

    def replan(self, batch, plans, drafts):
        at_hand = [d if p.refresh else s.ahead for s, p, d in zip(batch, plans, drafts, strict=True)]
        return self._plans(at_hand, [p.width if p.refresh else 0 for p in plans])

    def _plans(self, drafts, drafting_rows):
        pick, width = self._random, self._random.randint(1, self._max_width)
        offered = [pick.randint(0, len(draft.tokens)) for draft in drafts]
        roots = [tuple(sorted(pick.sample(range(-1, n), pick.randint(0, min(n + 1, 8))))) for n in offered]
        return [
            PassPlan(draft, count, own, width, "auto", drafting_rows=rows)
            for draft, count, own, rows in zip(drafts, offered, roots, drafting_rows, strict=True)
        ]

    def forget(self, sequence):
        pass

    def learn(self, batch, plans, kept):
        pass


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""The same with an end token after every turn, as in real chat templates."""
TOOL_CHAT = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHAT
"""The same, with the tools before the messages."""


FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
"""The special tokens of Qwen2.5-Coder; of a tokenizer that has them these are the last ones before the end token."""


def tokenizer(template=TEMPLATE, special=()):
    """A byte-level tokenizer: ids 0 to 255 are bytes, 300 is the mask, 319 ends a text, after the special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens([f"<unused{n}>" for n in range(len(letters), VOCAB - 1 - len(special))])
    made.add_special_tokens([*special, "<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", chat_template=template)


def save_checkpoint(directory, family="qwen3", seed=0, *, view=True, template=TEMPLATE, special=(), **overrides):
    """A tiny checkpoint on disk: in the published layout with its diffusion view, or a bare backbone."""
    hf = hf_config(family, **overrides)
    diffusion = DiffusionConfig(8, MASK, 7)
    made = randomise(Decoder(families.decoder_config(hf), diffusion, torch.float32, torch.device("cpu")), seed)
    content = {**hf.to_dict(), "architectures": ["Any"]}
    published.save(directory, content, diffusion, export.tensors(made, "ar") | (export.tensors(made, "diffusion")))
    if not view:
        (directory / "config.json").write_text(json.dumps(content))
        save_file(export.tensors(made, "ar"), directory / "model.safetensors")
    tokenizer(template, special).save_pretrained(directory)
    return directory
