"""The architectures of GGUF files: their families, tensor names, and the conventions in which llama.cpp stores tensors.

An architecture that is not listed has the name of its family, the usual tensor names and no conventions of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
"""Tensors that stack the matrices of all experts of a layer."""
MAX_EXPERTS = 1024
"""More than any model has; a damaged header must not cause as many names as it claims."""


@dataclass(frozen=True)
class Architecture:
    """How files of one architecture differ from the usual.

    names: tensors of a layer under other names. permuted: the rows of q and k are reordered, so that rotary embeddings
    pair neighbouring dimensions. norm_offset: what is already added to the weights of norms.
    """

    family: str
    names: dict[str, str] = field(default_factory=dict)
    permuted: bool = False
    norm_offset: float = 0.0


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True),
    "smollm3": Architecture("smollm3", permuted=True),
    "phi3": Architecture("phi3", {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "gemma2": Architecture("gemma2", GEMMA, norm_offset=1.0),
    "gemma3": Architecture("gemma3_text", GEMMA, norm_offset=1.0),
    "qwen3moe": Architecture("qwen3_moe", {"ffn_gate_inp": "mlp.gate"}),
}


def of(name: str) -> Architecture:
    """The architecture of this name."""
    return ARCHITECTURES.get(name) or Architecture(name)


def hf_name(name: str, architecture: str = "llama") -> str:
    """The Hugging Face name of a tensor; an unknown name is returned unchanged, and refused later. The tensors of
    `EXPERTS` get a name per expert: see `expert_names`."""
    stem, _, kind = name.rpartition(".")
    if stem in TOP_LEVEL:
        return f"{TOP_LEVEL[stem]}.{kind}"
    first, _, rest = stem.partition(".")
    index, _, part = rest.partition(".")
    layer = LAYER | of(architecture).names
    return f"model.layers.{index}.{layer[part]}.{kind}" if first == "blk" and part in layer else name


def expert_names(name: str, shape: tuple[int, ...]) -> list[str]:
    """The Hugging Face names of the matrices in a tensor of `EXPERTS`, in order; none for other tensors."""
    first, _, rest = name.partition(".")
    index, _, last = rest.partition(".")
    part, _, kind = last.rpartition(".")
    if first != "blk" or part not in EXPERTS or len(shape) != 3 or shape[0] > MAX_EXPERTS:
        return []
    return [f"model.layers.{index}.mlp.experts.{expert}.{EXPERTS[part]}.{kind}" for expert in range(shape[0])]
