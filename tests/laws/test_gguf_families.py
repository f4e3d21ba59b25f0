"""Law 8 for GGUF files of all families: a file in llama.cpp's conventions gives the decoder of the safetensors form.

Tensor names and metadata keys come from the `gguf` library, not from ours.
"""

from __future__ import annotations

import re

import gguf
import numpy as np
import pytest
import tiny
import torch
from gguf.constants import MODEL_ARCH_NAMES
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from orthrus.checkpoint import hub
from orthrus.model import families

BARE = {"attention_bias": False, "mlp_bias": False}
CASES = {
    "llama": ("llama", BARE),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "mistral": ("llama", {}),
    "smollm3": ("smollm3", BARE | {"no_rope_layers": None, "num_hidden_layers": 4, "use_sliding_window": False}),
    "phi3": ("phi3", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}),
    "gemma3_text": ("gemma3", {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6, "num_hidden_layers": 7}),
    "mixtral": ("llama", {}),
    "qwen2_moe": ("qwen2moe", {"mlp_only_layers": None, "use_sliding_window": False}),
    "gpt_oss": ("gpt-oss", {}),
    "granite": ("granite", BARE),
    "olmo2": ("olmo2", {}),
    "gemma": ("gemma", {"tie_word_embeddings": True}),
    "arcee": ("arcee", {"attention_bias": True}),
    "seed_oss": ("seed_oss", {}),
    "ernie4_5": ("ernie4_5", {"use_bias": False}),
    "glm4": ("glm4", {}),
    "hunyuan_v1_dense": ("hunyuan-dense", {}),
    "exaone4": ("exaone4", {"sliding_window_pattern": 4, "num_hidden_layers": 5}),
    "starcoder2": ("starcoder2", {}),
    "stablelm": ("stablelm", {}),
    "cohere2": ("cohere2", {"sliding_window_pattern": 4, "num_hidden_layers": 5, "tie_word_embeddings": True}),
    "nemotron": ("nemotron", {}),
    "qwen3_moe": ("qwen3moe", {"mlp_only_layers": None, "use_sliding_window": False}),
}
"""Architecture and config of each family, without what a GGUF file cannot say."""


PERMUTED = ("llama", "smollm3", "granite", "arcee")
"""Architectures whose q and k have another order in GGUF files."""


def permuted(weight, heads):
    """As llama.cpp's converter reorders q and k of the Llama architectures."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def converted(directory, architecture, config):
    """The tensors of a checkpoint under llama.cpp's names and in its conventions."""
    (arch,) = [arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture]
    names, tensors, stacked = gguf.get_tensor_name_map(arch, config.num_hidden_layers), {}, {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        values = tensor.float().numpy()
        if architecture in PERMUTED and ("q_proj." in name or "k_proj." in name):
            values = permuted(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if architecture in ("gemma", "gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
            values = values + 1
        if several := re.fullmatch(r"(.*\.(?:experts|norms))\.(\d+)\.(.*)", name):
            before, number, after = several.groups()
            whole = f"{before}.{after}" if before.endswith("experts") else f"{before.removesuffix('.norms')}.{after}"
            stacked.setdefault(whole, []).append((int(number), values))
            continue
        own = names.get_name(name, (".weight", ".bias")) or name
        tensors[f"{own}.weight" if own.endswith("sinks") else own] = values
    for name, parts in stacked.items():
        tensors[names.get_name(name, (".weight", ".bias"))] = np.stack(
            [values for _, values in sorted(parts, key=lambda p: p[0])]
        )
    return tensors


def metadata(writer, config):
    """What llama.cpp's converter writes of a config."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    (name,) = (name for name in families.EPSILONS if hasattr(config, name))
    (writer.add_layer_norm_rms_eps if name == "rms_norm_eps" else writer.add_layer_norm_eps)(getattr(config, name))
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters.get("full_attention") or config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_freq_base(rope["rope_theta"] * rope.get("alpha", 1.0) ** (size / (size - 2)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_key_length(size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "cohere2":
        writer.add_logit_scale(config.logit_scale)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def vocabulary(writer, model):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if model == "gpt2" else [f"<0x{n:02X}>" for n in range(256)]
    tokens = [*letters, "ab", *(f"<unused{n}>" for n in range(257, tiny.VOCAB - 1)), "<|end|>"]
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(tiny.VOCAB)])
    writer.add_token_types([1] * 256 + [3] * (tiny.VOCAB - 256))
    if model == "gpt2":
        writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tiny.END)


def write(directory, family, kind=None, extra=lambda writer: None, **changes):
    """A checkpoint in safetensors form and its GGUF file; `extra` writes more into that."""
    architecture, overrides = CASES[family][0], CASES[family][1] | changes
    plain, path = tiny.hf_config(family, **overrides), directory.with_suffix(".gguf")
    overrides |= {name: 2.0**-17 for name in families.EPSILONS if hasattr(plain, name)}  # exact in fp32
    config = tiny.hf_config(family, **overrides)
    tiny.save_checkpoint(directory, family, view=False, **overrides)
    writer = gguf.GGUFWriter(path, architecture)
    metadata(writer, config)
    extra(writer)
    vocabulary(writer, "llama" if architecture in ("phi3", "gemma", "gemma2", "gemma3") else "gpt2")
    for name, values in converted(directory, architecture, config).items():
        quantised = kind is not None and values.ndim > 1 and values.shape[-1] % 32 == 0 and "ffn_gate_inp" not in name
        stored = gguf.quantize(values, kind) if quantised else values
        writer.add_tensor(name, stored, raw_dtype=kind if quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return directory, path


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0], ids=["fp32", "q8_0"])
@pytest.mark.parametrize("family", list(CASES))
def test_a_gguf_file_gives_the_decoder_of_its_safetensors_form(tmp_path, family, kind):
    expected, found = (hub.load_decoder(str(path), torch.float32) for path in write(tmp_path / "model", family, kind))
    assert found.config == expected.config
    tolerance = {"atol": 1e-6, "rtol": 0.0} if kind is None else {"atol": 0.02, "rtol": 0.02}
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    if kind is not None:
        kept = {name for name, linear in found.linears().items() if linear.group_quantized is not None}
        assert kept == {name for name in found.linears() if "router" not in name}


THETA = {"rope_theta": 500000.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, **THETA}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, **THETA}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, **THETA,
}  # fmt: skip


def factors(rope, size, config):
    """`rope_freqs.weight` of llama.cpp: by how much transformers divides each frequency."""
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, torch.device("cpu"))
    return (1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2) / size) / scaled).numpy().astype(np.float32)


@pytest.mark.parametrize(
    ("family", "rope"),
    [("llama", LINEAR), ("llama", YARN), ("llama", LLAMA3), ("qwen2", LINEAR), ("qwen2", YARN)],
    ids=lambda value: value if isinstance(value, str) else value["rope_type"],
)
def test_scaled_rotary_embeddings_of_a_file_are_kept(tmp_path, family, rope):
    """llama.cpp stores the scaling of Llama 3 as a factor per frequency."""

    def extra(writer):
        if rope["rope_type"] == "llama3":
            config = tiny.hf_config(family, **changes)
            writer.add_tensor("rope_freqs.weight", factors(rope, 16, config))

    changes = {"rope_parameters": rope, "max_position_embeddings": 16384}
    paths = write(tmp_path / "model", family, extra=extra, **changes)
    expected, found = (hub.load_decoder(str(path), torch.float32) for path in paths)
    assert expected.config.ropes[0] != tiny.decoder(family).config.ropes[0], "nothing is scaled"
    for one, other in zip(found.config.ropes, expected.config.ropes, strict=True):
        torch.testing.assert_close(torch.tensor(one.inverse_frequencies), torch.tensor(other.inverse_frequencies))
        assert one.scaling == other.scaling


def test_yarn_with_its_defaults_written_out_is_yarn(tmp_path):
    """Converters copy `beta_fast` and `beta_slow` where a config names them."""

    def extra(writer):
        writer.add_rope_scaling_yarn_beta_fast(32.0)
        writer.add_rope_scaling_yarn_beta_slow(1.0)

    changes = {"rope_parameters": YARN, "max_position_embeddings": 16384}
    paths = write(tmp_path / "model", "llama", extra=extra, **changes)
    expected, found = (hub.load_decoder(str(path), torch.float32).config.ropes[0] for path in paths)
    assert found.scaling == expected.scaling != 1.0
    torch.testing.assert_close(torch.tensor(found.inverse_frequencies), torch.tensor(expected.inverse_frequencies))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_float32("llama.rope.scaling.yarn_beta_slow", 2.0), "yarn_beta_slow, which is not supported"),
        (lambda w: w.add_float32("llama.rope.scaling.yarn_beta_fast", 16.0), "yarn_beta_fast, which is not supported"),
        (lambda w: w.add_string("llama.rope.scaling.type", "longrope"), "longrope"),
        (
            lambda w: w.add_tensor("rope_freqs.weight", np.full(8, 3.0, np.float32)),
            "other factors than those of Llama 3",
        ),
    ],
)
def test_rotary_embeddings_that_cannot_be_followed_are_refused(tmp_path, extra, message):
    _, path = write(tmp_path / "model", "llama", extra=extra)
    with pytest.raises(ValueError, match=message):
        hub.load_decoder(str(path), torch.float32)


def test_the_ends_of_turns_of_a_file_are_known(tmp_path):
    """By their metadata, or by their text where the chat template has it; the end of text may be another token."""

    def extra(writer):
        writer.add_eot_token_id(7)
        writer.add_chat_template("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")

    _, path = write(tmp_path / "model", "phi3", extra=extra, sliding_window=None)
    assert hub.load(str(path), dtype=torch.float32).end_token_ids == {7, tiny.END}


@pytest.mark.parametrize("family", ["phi3", "mistral", "mixtral", "starcoder2", "exaone4"])
def test_a_sliding_window_of_zero_is_none(tmp_path, family):
    full = {"layer_types": ["full_attention"] * 5} if family == "exaone4" else {}  # transformers has no default there
    changes = {"sliding_window": None, **full}
    _, zero = write(tmp_path / "zero", family, extra=lambda w: w.add_sliding_window(0), **changes)
    plain, _ = write(tmp_path / "plain", family, **changes)
    configs = [hub.load_decoder(str(path), torch.float32).config for path in (zero, plain)]
    assert configs[0] == configs[1]
    assert configs[0].windows == (None,)


def test_a_mixtral_without_the_number_of_active_experts_is_refused_by_field(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf.GGUFWriter, "add_expert_used_count", lambda *_: None)
    _, path = write(tmp_path / "model", "mixtral")
    with pytest.raises(ValueError, match=r"llama\.expert_used_count"):
        hub.load_decoder(str(path), torch.float32)
