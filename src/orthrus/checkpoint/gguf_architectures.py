"""The architectures of GGUF files: their families, tensor names, and the conventions in which llama.cpp stores tensors.

An architecture that is not listed has the name of its family, the usual tensor names and no conventions of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TOP_LEVEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
GEMMA = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GLM4 = {
    "post_attention_norm": "post_self_attn_layernorm", "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm", "ffn_up": "mlp.gate_up_proj",
}  # fmt: skip
HUNYUAN = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
HEAD_NORMS = {"attn_q_norm": "q_layernorm", "attn_k_norm": "k_layernorm"}
"""Tensors that stack the norms of all heads, in an architecture whose heads have norms of their own."""
EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj", "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}  # fmt: skip
"""Tensors that stack the matrices, or the biases, of all experts of a layer."""
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3", "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}  # fmt: skip
SHARED = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
GPT_OSS = {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}
MAX_STACKED = 1024
"""More experts, and more heads, than any model has; a damaged header must not cause as many names as it claims."""


@dataclass(frozen=True)
class Architecture:
    """How files of one architecture differ from the usual.

    names: tensors of a layer under other names. permuted: the rows of q and k are reordered, so that rotary embeddings
    pair neighbouring dimensions. norm_offset: what is already added to the weights of norms. layer_norm: whether the
    mean is taken off before a norm.
    """

    family: str
    names: dict[str, str] = field(default_factory=dict)
    permuted: bool = False
    norm_offset: float = 0.0
    layer_norm: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),
    "smollm3": Architecture("smollm3", permuted=True),
    "phi3": Architecture("phi3", {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "gemma2": Architecture("gemma2", GEMMA, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", GEMMA, norm_offset=1.0),
    "granite": Architecture("granite", permuted=True),
    "olmo2": Architecture("olmo2", AFTER),
    "gemma": Architecture("gemma", norm_offset=1.0),
    "arcee": Architecture("arcee", permuted=True),
    "seed_oss": Architecture("seed_oss", {"post_attention_norm": "post_attention_layernorm"}),
    "glm4": Architecture("glm4", GLM4),
    "hunyuan-dense": Architecture("hunyuan_v1_dense", HUNYUAN),
    "exaone4": Architecture("exaone4", AFTER),
    "cohere2": Architecture("cohere2", layer_norm=True),
    "starcoder2": Architecture("starcoder2", {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}, layer_norm=True),
    "stablelm": Architecture("stablelm", layer_norm=True),
    "nemotron": Architecture("nemotron", norm_offset=1.0, layer_norm=True),
    "mixtral": Architecture("mixtral", MIXTRAL, permuted=True),
    "qwen2moe": Architecture("qwen2_moe", SHARED),
    "gpt-oss": Architecture("gpt_oss", GPT_OSS),
    "qwen3moe": Architecture("qwen3_moe", {"ffn_gate_inp": "mlp.gate"}),
}


def of(name: str) -> Architecture:
    """The architecture of this name."""
    return ARCHITECTURES.get(name) or Architecture(name)


def name_of(fields: Mapping[str, Any]) -> str:
    """The name of the architecture of a file; that of `ARCHITECTURES` for a Llama with experts, which is a Mixtral."""
    name: str = fields["general.architecture"]
    return "mixtral" if name == "llama" and fields.get("llama.expert_count") else name


def hf_name(name: str, architecture: str = "llama") -> str:
    """The Hugging Face name of a tensor; an unknown name is returned unchanged, and refused later. Tensors
    that stack others have several names: see `stacked_names`."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP_LEVEL:
        return f"{TOP_LEVEL[stem]}.{kind}"
    first, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    layer = LAYER | of(architecture).names
    if first == "blk" and part == "attn_sinks":
        return f"model.layers.{index}.self_attn.sinks"
    return f"model.layers.{index}.{layer[part]}.{kind}" if first == "blk" and part in layer else name


def stacked_names(name: str, shape: tuple[int, ...], architecture: str) -> list[str]:
    """The Hugging Face names of the tensors that a tensor of `EXPERTS` or `HEAD_NORMS` stacks, in order; none for other
    tensors."""
    first, _, rest = name.partition(".")
    index, _, last = rest.partition(".")
    part, _, kind = last.rpartition(".")
    if first != "blk" or not shape or shape[0] > MAX_STACKED:
        return []
    layer = f"model.layers.{index}"
    if part in EXPERTS and len(shape) == (2 if kind == "bias" else 3):
        names = EXPERTS | of(architecture).names
        return [f"{layer}.{names[part].format(expert)}.{kind}" for expert in range(shape[0])]
    if part in HEAD_NORMS and architecture == "stablelm" and len(shape) == 2:
        return [f"{layer}.self_attn.{HEAD_NORMS[part]}.norms.{head}.{kind}" for head in range(shape[0])]
    return []
