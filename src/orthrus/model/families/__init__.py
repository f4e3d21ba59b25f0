"""Backbone families: one file per family, named after the `model_type` of the Hugging Face config.

A family file must define `config(hf) -> DecoderConfig`; adding a family is adding a file. This module lists the
families, refuses unsupported features of a config by name, and maps our tensor names to those of Hugging Face.
"""

from __future__ import annotations

import importlib
import pkgutil
from math import isfinite
from types import ModuleType
from typing import Any

from orthrus.config import DecoderConfig, RopeConfig

ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def names() -> list[str]:
    """All supported families, from the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Load the module of a family. Raises ValueError with the list of families where there is none of that name."""
    if name not in names():
        raise ValueError(f"model family {name!r} is not supported; supported families: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def decoder_config(hf: Any) -> DecoderConfig:
    """Translate a Hugging Face config. Raises ValueError naming a feature that the decoder does not support."""
    family = load(hf.model_type)
    if getattr(hf, "use_sliding_window", False) or any(
        kind != "full_attention" for kind in getattr(hf, "layer_types", None) or ()
    ):
        raise ValueError("sliding-window attention is not supported (this config asks for it)")
    if getattr(hf, "hidden_act", "silu") != "silu":
        raise ValueError(f"activation {hf.hidden_act!r} is not supported, only 'silu'")
    quantization = getattr(hf, "quantization_config", None)
    if quantization and _method(quantization) != "gguf":
        raise ValueError(
            f"weights quantised by {_method(quantization)!r} cannot be read; use the original or a GGUF checkpoint"
        )
    return family.config(hf)


def common(hf: Any, **differences: Any) -> DecoderConfig:
    """The fields that all families translate alike, and the fields `differences` of one family."""
    return DecoderConfig(
        family=hf.model_type,
        vocab_size=hf.vocab_size,
        hidden_size=hf.hidden_size,
        intermediate_size=hf.intermediate_size,
        layers=hf.num_hidden_layers,
        heads=hf.num_attention_heads,
        kv_heads=hf.num_key_value_heads,
        head_dim=_head_dim(hf),
        norm_eps=hf.rms_norm_eps,
        rope=rope(hf),
        max_positions=hf.max_position_embeddings,
        tied_head=bool(hf.tie_word_embeddings),
        **differences,
    )


def rope(hf: Any) -> RopeConfig:
    """Rotary frequencies from the initialisers of transformers.

    Raises ValueError for types whose frequencies depend on the longest position of a pass: with them the K/V of a token
    would depend on the tokens after it.
    """
    parameters = hf.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ValueError(f"RoPE type {kind!r} is not supported; supported types: {', '.join(ROPE_TYPES)}")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial rotary embeddings are not supported")
    try:
        if kind == "default":
            frequencies, scaling = _default_frequencies(_head_dim(hf), parameters["rope_theta"]), 1.0
        else:
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](hf, "cpu")
        initialised = RopeConfig(tuple(frequencies.tolist()), float(scaling))
    except Exception as error:
        raise ValueError(f"rope_parameters of type {kind!r} give no frequencies ({error!r})") from error
    if not all(map(isfinite, (*initialised.inverse_frequencies, initialised.scaling))):
        raise ValueError(f"rope_parameters of type {kind!r} give frequencies that are NaN or infinite")
    return initialised


def _default_frequencies(dim: int, theta: float) -> Any:
    import torch

    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)


def sources(config: DecoderConfig, view: str = "ar") -> dict[str, tuple[str, ...]]:
    """Maps each of our tensor names to the Hugging Face tensors that it concatenates.

    View "ar" covers the whole backbone; view "diffusion" covers only the diffusion view, under its published names
    (`...q_proj_diff.weight`).
    """
    names: dict[str, tuple[str, ...]] = {}
    if view == "ar":
        names = {"embedding": ("model.embed_tokens.weight",), "norm": ("model.norm.weight",)}
        if not config.tied_head:
            names["head.weight"] = ("lm_head.weight",)
    suffix = "" if view == "ar" else "_diff"
    for index in range(config.layers):
        ours, theirs = f"layers.{index}", f"model.layers.{index}"
        attention = f"{theirs}.self_attn"
        kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
        for kind in kinds:
            names[f"{ours}.{view}.qkv.{kind}"] = tuple(f"{attention}.{p}_proj{suffix}.{kind}" for p in "qkv")
        for kind in ("weight", "bias") if config.o_bias else ("weight",):
            names[f"{ours}.{view}.o.{kind}"] = (f"{attention}.o_proj{suffix}.{kind}",)
        if config.qk_norm:
            for p in "qk":
                names[f"{ours}.{view}.{p}_norm"] = (f"{attention}.{p}_norm{suffix}.weight",)
        if view == "ar":
            names[f"{ours}.attention_norm"] = (f"{theirs}.input_layernorm.weight",)
            names[f"{ours}.mlp_norm"] = (f"{theirs}.post_attention_layernorm.weight",)
            for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
                names[f"{ours}.gate_up.{kind}"] = tuple(f"{theirs}.mlp.{p}_proj.{kind}" for p in ("gate", "up"))
                names[f"{ours}.down.{kind}"] = (f"{theirs}.mlp.down_proj.{kind}",)
    return names


def _head_dim(hf: Any) -> int:
    head_dim = getattr(hf, "head_dim", None)
    if not head_dim and hf.hidden_size % hf.num_attention_heads:
        sizes = f"hidden_size {hf.hidden_size}", f"num_attention_heads {hf.num_attention_heads}"
        raise ValueError(f"without a head_dim, {sizes[0]} must be a multiple of {sizes[1]}")
    return int(head_dim or hf.hidden_size // hf.num_attention_heads)


def _method(quantization: Any) -> str:
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method"))
    return str(getattr(quantization, "quant_method", quantization)).split(".")[-1].lower()
