"""The rotary parameters of a config from the metadata of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""The scaling of rotary embeddings in Llama 3.1 to 3.3, apart from its factor."""
SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned")
NEUTRAL = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
"""Metadata of scaled rotary embeddings: what is read or has no effect, and further values that have none. Those of YaRN
are the defaults of llama.cpp (`llama_hparams`) and of transformers; converters copy them from a config that names
them."""


def head_dim(metadata: Mapping[str, Any]) -> int:
    """The size of a head."""
    return int(metadata.get("attention.key_length") or metadata["embedding_length"] // metadata["attention.head_count"])


def parameters(metadata: Mapping[str, Any], theta: float) -> dict[str, Any]:
    """The rotary parameters, with the scaling that the file has. A factor alone means linear scaling."""
    made: dict[str, Any] = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base", theta)}
    factor = metadata.get("rope.scaling.factor", metadata.get("rope.scale_linear", 0.0)) or 1.0
    kind = metadata.get("rope.scaling.type", "linear" if factor != 1.0 else "none")
    further = {
        name: value for name, value in metadata.items() if name.startswith("rope.scaling.") and name not in SCALING
    }
    if unknown := [name for name, value in further.items() if value != NEUTRAL.get(name)]:
        raise ValueError(f"the rotary embeddings are scaled by {', '.join(sorted(unknown))}, which is not supported")
    if kind == "none":
        return made
    trained = {"original_max_position_embeddings": metadata.get("rope.scaling.original_context_length")}
    made |= {"rope_type": kind, "factor": factor}
    return made | {name: value for name, value in trained.items() if value is not None}


def of_llama3(content: Mapping[str, Any], factors: Sequence[float]) -> dict[str, Any]:
    """The rotary parameters of Llama 3.1 and later, of which a file holds the result: a factor per frequency."""
    size = content.get("head_dim", content["hidden_size"] // content["num_attention_heads"])
    theta, scaling = content["rope_parameters"]["rope_theta"], {**LLAMA3, "factor": round(max(factors), 3)}
    expected = []
    for pair in range(size // 2):
        turns = LLAMA3["original_max_position_embeddings"] * theta ** (-2 * pair / size) / (2 * math.pi)
        kept = (turns - LLAMA3["low_freq_factor"]) / (LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"])
        kept = min(max(kept, 0.0), 1.0)
        expected.append(1 / ((1 - kept) / scaling["factor"] + kept))
    same = len(factors) == len(expected) and all(
        math.isclose(own, other, rel_tol=1e-3) for own, other in zip(factors, expected, strict=True)
    )
    if not same:
        raise ValueError("rope_freqs.weight holds other factors than those of Llama 3, which is not supported")
    return {"rope_type": "llama3", "rope_theta": theta, **scaling}
