"""Maps our tensor names to those of Hugging Face, from the config and the names that a family has of its own."""

from __future__ import annotations

import re

from orthrus.decoder_config import DecoderConfig
from orthrus.model import families

EMBEDDING = "embedding.weight"
"""Our name of the vectors of tokens."""


def sources(config: DecoderConfig, view: str = "ar") -> dict[str, tuple[str, ...]]:
    """Maps each of our tensor names to the Hugging Face tensors that it concatenates.

    View "ar" covers the whole backbone; view "diffusion" covers only the diffusion view, under its published names
    (`...q_proj_diff.weight`).
    """
    names: dict[str, tuple[str, ...]] = {}
    if view == "ar":
        names = {EMBEDDING: ("model.embed_tokens.weight",)} | _norm(config, "norm", "model.norm")
        if not config.tied_head:
            names["head.weight"] = ("lm_head.weight",)
    for index in range(config.layers):
        names |= _attention_sources(config, index, view)
        if view == "ar":
            names |= _layer_sources(config, index)
    theirs: dict[str, str] = getattr(families.load(config.family), "NAMES", {}) if view == "ar" else {}
    if not theirs:
        return names
    parts = re.compile(rf"(?<=\.)({'|'.join(map(re.escape, theirs))})(?=\.)")
    return {ours: tuple(parts.sub(lambda part: theirs[part[0]], name) for name in all_) for ours, all_ in names.items()}


def _norm(config: DecoderConfig, ours: str, theirs: str) -> dict[str, tuple[str, ...]]:
    kinds = ("weight", "bias") if config.norm_bias else ("weight",)
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for kind in kinds}


def _attention_sources(config: DecoderConfig, index: int, view: str) -> dict[str, tuple[str, ...]]:
    ours, theirs, suffix = f"layers.{index}.{view}", f"model.layers.{index}.self_attn", "" if view == "ar" else "_diff"
    parts = ("qkv",) if "qkv" in config.fused_sources and view == "ar" else ("q", "k", "v")
    names: dict[str, tuple[str, ...]] = {}
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        names[f"{ours}.qkv.{kind}"] = tuple(f"{theirs}.{part}_proj{suffix}.{kind}" for part in parts)
    for kind in ("weight", "bias") if config.o_bias else ("weight",):
        names[f"{ours}.o.{kind}"] = (f"{theirs}.o_proj{suffix}.{kind}",)
    if config.qk_norm:
        for part, heads in (("q", config.heads), ("k", config.kv_heads)):
            norms = [f"{part}_norm{suffix}"]
            if config.qk_norm == "heads" and view == "ar":
                norms = [f"{part}_norm.norms.{head}" for head in range(heads)]
            names[f"{ours}.{part}_norm"] = tuple(f"{theirs}.{norm}.weight" for norm in norms)
    return names


def _layer_sources(config: DecoderConfig, index: int) -> dict[str, tuple[str, ...]]:
    """The norms and the MLP of a layer. With norms on both sides, the one before the MLP has another name."""
    ours, theirs = f"layers.{index}", f"model.layers.{index}"
    norms = {"attention_norm": "input", "mlp_norm": "post_attention"}
    if config.post_norms:
        norms |= {"post_attention_norm": "post_attention", "mlp_norm": "pre_feedforward"}
        norms |= {"post_mlp_norm": "post_feedforward"}
    if not config.pre_norms:
        norms = {one: other for one, other in norms.items() if one.startswith("post")}
    elif config.parallel:
        del norms["mlp_norm"]
    names: dict[str, tuple[str, ...]] = {}
    if config.attention_sinks:
        names[f"{ours}.sinks"] = (f"{theirs}.self_attn.sinks",)
    for one, other in norms.items():
        names |= _norm(config, f"{ours}.{one}", f"{theirs}.{other}_layernorm")
    mlps = {f"{ours}.mlp": f"{theirs}.mlp"}
    if config.layer(index).experts and config.experts is not None:
        names[f"{ours}.mlp.router.weight"] = (f"{theirs}.mlp.gate.weight",)
        if config.experts.router_bias:
            names[f"{ours}.mlp.router.bias"] = (f"{theirs}.mlp.gate.bias",)
        mlps = {f"{ours}.mlp.experts.{n}": f"{theirs}.mlp.experts.{n}" for n in range(config.experts.count)}
        if config.experts.shared_size is not None:
            names[f"{ours}.mlp.shared_gate.weight"] = (f"{theirs}.mlp.shared_expert_gate.weight",)
            mlps[f"{ours}.mlp.shared"] = f"{theirs}.mlp.shared_expert"
    parts = ("gate_up",) if "gate_up" in config.fused_sources else ("gate", "up") if config.gated else ("up",)
    for one, other in mlps.items():
        for kind in ("weight", "bias") if config.mlp_bias else ("weight",):
            names[f"{one}.gate_up.{kind}"] = tuple(f"{other}.{part}_proj.{kind}" for part in parts)
            names[f"{one}.down.{kind}"] = (f"{other}.down_proj.{kind}",)
    return names
