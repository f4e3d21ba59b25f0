"""Law 8 for GGUF files of all families: a file in llama.cpp's conventions gives the decoder of the safetensors form.

Tensor names and metadata keys come from the `gguf` library, not from ours.
"""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import tiny
import torch
from gguf.constants import MODEL_ARCH_NAMES
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from orthrus.checkpoint import hub

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
    "qwen3_moe": ("qwen3moe", {"mlp_only_layers": None, "use_sliding_window": False}),
}
"""Architecture and config of each family, without what a GGUF file cannot say."""


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
        if architecture in ("llama", "smollm3") and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        if architecture in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            values = values + 1
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            stacked.setdefault(f"{before}.experts.{after.partition('.')[2]}", []).append(
                (int(after.split(".")[0]), values)
            )
            continue
        tensors[names.get_name(name, (".weight", ".bias")) or name] = values
    for name, parts in stacked.items():
        tensors[names.get_name(name, (".weight",))] = np.stack(
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
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base((rope.get("full_attention") or rope)["rope_theta"])
    if "full_attention" in rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["full_attention"]["factor"])
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_key_length(size)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "num_experts", None):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


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


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q8_0], ids=["fp32", "q8_0"])
@pytest.mark.parametrize("family", list(CASES))
def test_a_gguf_file_gives_the_decoder_of_its_safetensors_form(tmp_path, family, kind):
    architecture, overrides = CASES[family][0], CASES[family][1] | {"rms_norm_eps": 2.0**-17}  # exact in fp32
    config = tiny.hf_config(family, **overrides)
    directory = tiny.save_checkpoint(tmp_path / "model", family, view=False, **overrides)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    metadata(writer, config)
    vocabulary(writer, "llama" if architecture in ("phi3", "gemma2", "gemma3") else "gpt2")
    for name, values in converted(directory, architecture, config).items():
        quantised = kind is not None and values.ndim > 1 and values.shape[-1] % 32 == 0 and "ffn_gate_inp" not in name
        stored = gguf.quantize(values, kind) if quantised else values
        writer.add_tensor(name, stored, raw_dtype=kind if quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected, found = (hub.load_decoder(str(path), torch.float32) for path in (directory, tmp_path / "model.gguf"))
    assert found.config == expected.config
    tolerance = {"atol": 1e-6, "rtol": 0.0} if kind is None else {"atol": 0.02, "rtol": 0.02}
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    if kind is not None:
        kept = {name for name, linear in found.linears().items() if linear.group_quantized is not None}
        assert kept == {name for name in found.linears() if "router" not in name}
