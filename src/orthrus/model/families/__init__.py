"""Backbone families: one file per family, named after the `model_type` of the Hugging Face config.

A family file must define `config(hf) -> DecoderConfig`; adding a family is adding a file. This module lists the
families and refuses unsupported features of a config by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from copy import copy
from dataclasses import replace
from math import isfinite
from types import ModuleType
from typing import Any

from orthrus.decoder_config import DecoderConfig, LayerConfig, RopeConfig

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}
"""Activations by their Hugging Face names."""
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "norm_epsilon", "norm_eps")
"""What families call the smallest mean square of a norm."""
PAGE = "docs/backbones.md"
"""The page that says how a family is added."""


def names() -> list[str]:
    """All supported families, from the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """Load the module of a family. Raises ValueError with the list of families where there is none of that name."""
    if name not in names():
        raise ValueError(
            f"model family {name!r} is not supported; supported families: {', '.join(names())}. A family is one file:"
            f" {PAGE} says how to add it"
        )
    return importlib.import_module(f"{__name__}.{name}")


def decoder_config(hf: Any) -> DecoderConfig:
    """Translate a Hugging Face config. Raises ValueError naming a feature that the decoder does not support."""
    family = load(hf.model_type)
    quantization = getattr(hf, "quantization_config", None)
    if quantization and _method(quantization) not in ("gguf", *getattr(family, "QUANTISED", ())):
        raise ValueError(
            f"the weights are quantised by {_method(quantization)!r}, which is not read: load the checkpoint that they"
            " were made from, or a GGUF file"
        )
    return family.config(hf)


def common(hf: Any, **differences: Any) -> DecoderConfig:
    """The fields that all families translate alike, and the fields `differences` of one family."""
    activation = getattr(hf, "hidden_activation", None) or getattr(hf, "hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not supported, only {', '.join(map(repr, ACTIVATIONS))}")
    fields = {
        "family": hf.model_type,
        "vocab_size": hf.vocab_size,
        "hidden_size": hf.hidden_size,
        "intermediate_size": hf.intermediate_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "kv_heads": hf.num_key_value_heads,
        "head_dim": head_dim(hf),
        "norm_eps": next(getattr(hf, name) for name in EPSILONS if hasattr(hf, name)),
        "max_positions": hf.max_position_embeddings,
        "tied_head": bool(hf.tie_word_embeddings),
        "activation": ACTIVATIONS[activation],
    }
    defaults: dict[str, Any] = {} if "ropes" in differences else {"ropes": (rope(hf),)}
    if "per_layer" not in differences:
        defaults["per_layer"] = tuple(map(LayerConfig, windows(hf)))
    made = DecoderConfig(**{**fields, **defaults, **differences})
    return replace(made, per_layer=()) if {*made.per_layer} == {LayerConfig()} else made


def windows(hf: Any) -> list[int | None]:
    """The sliding window of each layer: that of the config in layers whose type is `sliding_attention`, in all layers
    of a config without types. Raises ValueError for another type of layer."""
    size = getattr(hf, "sliding_window", None) if getattr(hf, "use_sliding_window", True) else None
    types = getattr(hf, "layer_types", None) or ["sliding_attention"] * hf.num_hidden_layers
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise ValueError(f"layers of type {kind!r} are not supported, only full_attention and sliding_attention")
    return [size if kind == "sliding_attention" else None for kind in types]


def one_window(hf: Any) -> list[int | None]:
    """The window of each layer in a family whose layers all have that of the config. Raises ValueError for types
    of layers, which transformers ignores there."""
    if getattr(hf, "layer_types", None):
        raise ValueError(f"layer_types are not supported in a {hf.model_type}, only one sliding_window for all layers")
    return windows(hf)


def rope(hf: Any, parameters: dict[str, Any] | None = None) -> RopeConfig:
    """Rotary frequencies from the initialisers of transformers, with zeros for dimensions that are not rotated.

    parameters: those of one type of layers (None: of all). Raises ValueError for types whose frequencies depend on the
    longest position of a pass: with them the K/V of a token would depend on the tokens after it.
    """
    parameters = hf.rope_parameters if parameters is None else parameters
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise ValueError(f"RoPE type {kind!r} is not supported; supported types: {', '.join(ROPE_TYPES)}")
    try:
        frequencies, scaling = _frequencies(hf, kind, parameters)
        zeros = (0.0,) * (head_dim(hf) // 2 - len(frequencies))
        initialised = RopeConfig((*frequencies, *zeros), scaling)
    except Exception as error:
        raise ValueError(f"rope_parameters of type {kind!r} give no frequencies ({error!r})") from error
    if not all(map(isfinite, (*initialised.inverse_frequencies, initialised.scaling))):
        raise ValueError(f"rope_parameters of type {kind!r} give frequencies that are NaN or infinite")
    return initialised


def rotary_dim(hf: Any) -> int | None:
    """How many dimensions of a head are rotated; None where all are."""
    dim = int(head_dim(hf) * hf.rope_parameters.get("partial_rotary_factor", 1.0))
    if dim < 2 or dim % 2:
        raise ValueError(f"partial_rotary_factor leaves {dim} dimensions of a head to rotate; expected an even number")
    return None if dim == head_dim(hf) else dim


def _frequencies(hf: Any, kind: str, parameters: dict[str, Any]) -> tuple[list[float], float]:
    import torch

    if kind == "default":
        dim = int(head_dim(hf) * parameters.get("partial_rotary_factor", 1.0))
        frequencies = 1.0 / parameters["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
        return frequencies.tolist(), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    one = copy(hf)  # initialisers read the parameters from a config, which may hold those of several types of layers
    one.rope_parameters = parameters
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](one, "cpu")
    return frequencies.tolist(), float(scaling)


def head_dim(hf: Any) -> int:
    """The size of a head. Raises ValueError where the config gives none and the hidden size is no multiple of it."""
    given = getattr(hf, "head_dim", None)
    if not given and hf.hidden_size % hf.num_attention_heads:
        sizes = f"hidden_size {hf.hidden_size}", f"num_attention_heads {hf.num_attention_heads}"
        raise ValueError(f"without a head_dim, {sizes[0]} must be a multiple of {sizes[1]}")
    return int(given or hf.hidden_size // hf.num_attention_heads)


def _method(quantization: Any) -> str:
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method"))
    return str(getattr(quantization, "quant_method", quantization)).split(".")[-1].lower()
