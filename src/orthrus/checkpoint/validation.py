"""Validation of the JSON files of a checkpoint against tables of fields and ranges, before their values are used.

The ranges exceed every published model by far; they keep impossible values from causing huge allocations. Every error
is a ValueError that names the file, the field, its value and what is accepted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, NoReturn

from orthrus.model.families import EPSILONS

MAX_JSON_BYTES = 64 * 2**20
MAX_DEPTH = 32
MAX_VOCABULARY = 2**24


@dataclass(frozen=True)
class Field:
    """A field: the type of its value and, for a number, its range. A float may be written as an integer.

    Lists hold strings, or with a range integers in it. A null value counts as absent; only a field that is not
    `required` may be absent.
    """

    type: type[int | float | bool | str | dict[str, Any] | list[Any]]
    low: float = 0
    high: float = 0
    required: bool = False

    def accepts(self, value: object) -> bool:
        """Whether a value that is not None is valid. NaN is outside every range, and a bool is not a number."""
        if self.type in (int, float):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and (self.type is float or isinstance(value, int)) and self.low <= value <= self.high  # type: ignore[operator]
        if not isinstance(value, self.type):
            return False
        if not isinstance(value, list):
            return True
        return all(isinstance(item, str) if self.high == 0 else self._holds(item) for item in value)

    def _holds(self, item: object) -> bool:
        return type(item) is int and self.low <= item <= self.high

    def __str__(self) -> str:
        """The accepted values, for error messages."""
        if self.type in (int, float):
            return f"{'an integer' if self.type is int else 'a number'} in {_bound(self.low)}..{_bound(self.high)}"
        items = f"integers in {_bound(self.low)}..{_bound(self.high)}" if self.high else "strings"
        return {bool: "true or false", str: "a string", dict: "an object", list: f"a list of {items}"}[self.type]


TYPE = {"model_type": Field(str, required=True)}
BACKBONE = {
    "vocab_size": Field(int, 1, MAX_VOCABULARY, required=True),
    "hidden_size": Field(int, 1, 2**16, required=True),
    "intermediate_size": Field(int, 1, 2**20, required=True),
    "num_hidden_layers": Field(int, 1, 1024, required=True),
    "num_attention_heads": Field(int, 1, 1024, required=True),
    "num_key_value_heads": Field(int, 1, 1024),
    "head_dim": Field(int, 2, 1024),
    "max_position_embeddings": Field(int, 1, 2**27, required=True),
    "rms_norm_eps": Field(float, 1e-12, 0.1),
    "layer_norm_eps": Field(float, 1e-12, 0.1),
    "norm_epsilon": Field(float, 1e-12, 0.1),
    "norm_eps": Field(float, 1e-12, 0.1),
    "rope_theta": Field(float, 1, 1e12),
    "partial_rotary_factor": Field(float, 0, 1),
    "rope_parameters": Field(dict),
    "rope_scaling": Field(dict),
    "hidden_act": Field(str),
    "layer_types": Field(list),
    "architectures": Field(list),
    "tie_word_embeddings": Field(bool),
    "attention_bias": Field(bool),
    "attention_out_bias": Field(bool),
    "mlp_bias": Field(bool),
    "use_bias": Field(bool),
    "use_qkv_bias": Field(bool),
    "qkv_bias": Field(bool),
    "qk_layernorm": Field(bool),
    "use_parallel_residual": Field(bool),
    "embedding_multiplier": Field(float, 1e-6, 1e6),
    "attention_multiplier": Field(float, 1e-6, 1e6),
    "residual_multiplier": Field(float, 1e-6, 1e6),
    "logits_scaling": Field(float, 1e-6, 1e6),
    "logit_scale": Field(float, 1e-6, 1e6),
    "use_sliding_window": Field(bool),
    "sliding_window": Field(int, 0, 2**27),
    "sliding_window_pattern": Field(int, 1, 1024),
    "use_bidirectional_attention": Field(bool),
    "query_pre_attn_scalar": Field(float, 1e-3, 2**16),
    "attn_logit_softcapping": Field(float, 1e-3, 1e6),
    "final_logit_softcapping": Field(float, 1e-3, 1e6),
    "hidden_activation": Field(str),
    "no_rope_layers": Field(list, 0, 1),
    "no_rope_layer_interval": Field(int, 1, 1024),
    "num_experts": Field(int, 1, 1024),
    "num_local_experts": Field(int, 1, 1024),
    "num_experts_per_tok": Field(int, 1, 1024),
    "moe_intermediate_size": Field(int, 1, 2**20),
    "shared_expert_intermediate_size": Field(int, 1, 2**20),
    "norm_topk_prob": Field(bool),
    "decoder_sparse_step": Field(int, 1, 1024),
    "mlp_only_layers": Field(list, 0, 1023),
    "swiglu_alpha": Field(float, 1e-3, 1e3),
    "swiglu_limit": Field(float, 1e-3, 1e3),
    "num_labels": Field(int, 0, 2**16),
}
"""The fields of `config.json` that families read, besides `model_type`."""

ROPE = {
    "rope_type": Field(str),
    "type": Field(str),
    "rope_theta": BACKBONE["rope_theta"],
    "partial_rotary_factor": BACKBONE["partial_rotary_factor"],
    "factor": Field(float, 1e-3, 1e6),
    "original_max_position_embeddings": Field(int, 1, 2**27),
    "attention_factor": Field(float, 1e-3, 1e3),
    "beta_fast": Field(float, 1e-3, 1e6),
    "beta_slow": Field(float, 1e-3, 1e6),
    "low_freq_factor": Field(float, 1e-3, 1e6),
    "high_freq_factor": Field(float, 1e-3, 1e6),
    "alpha": Field(float, 1e-3, 1e6),
    "mscale": Field(float, 0, 1e3),
    "mscale_all_dim": Field(float, 0, 1e3),
    "truncate": Field(bool),
}
"""The fields of `rope_parameters` and of its older name `rope_scaling`."""

LAYER_TYPES = ("full_attention", "sliding_attention")
"""The types of layers that may have rotary parameters of their own."""

TOKENIZER = {
    "tokenizer_class": Field(str),
    "model_max_length": Field(float, 1, 1e31),
    "added_tokens_decoder": Field(dict),
}
"""The fields of `tokenizer_config.json` that are checked here; transformers checks the others."""

DIFFUSION = {
    "block_size": Field(int, 1, 4096, required=True),
    "mask_token_id": Field(int, 0, MAX_VOCABULARY - 1, required=True),
    "trained_rows": Field(int, 1, 4096),
}
"""The fields of a diffusion view."""


def short_repr(value: object) -> str:
    """The repr of a value, limited in length and depth, for error messages."""
    formatter = Repr()
    formatter.maxstring = formatter.maxother = formatter.maxlong = 80
    formatter.maxlevel = 3
    return formatter.repr(value)


def refuse(where: object, name: str, value: object, expected: object) -> NoReturn:
    """Raise the ValueError of a field that is missing or has a wrong value."""
    actual = "is missing" if value is None else f"is {short_repr(value)}"
    raise ValueError(f"{where}: {name} {actual}; expected {expected}")


def check(where: object, content: Mapping[str, Any], table: Mapping[str, Field], prefix: str = "") -> None:
    """Check the fields of a JSON object against a table. Raises ValueError naming the first that is wrong."""
    for name, field in table.items():
        value = content.get(name)
        if (field.required or value is not None) and not field.accepts(value):
            refuse(where, prefix + name, value, field)


def check_backbone(where: object, content: dict[str, Any]) -> None:
    """Check a `config.json` against the tables, and its fields against each other. Raises ValueError."""
    pattern = content.get("sliding_window_pattern")
    if isinstance(pattern, str) or pattern == 0:  # of EXAONE 4, without a window 0; its configs state `layer_types` too
        content = {**content, "sliding_window_pattern": None}
    check(where, content, BACKBONE)
    for name in ("rope_parameters", "rope_scaling"):
        _check_rope(where, content.get(name) or {}, name)
    if all(content.get(name) is None for name in EPSILONS):
        refuse(where, EPSILONS[0], None, f"{BACKBONE[EPSILONS[0]]} (or one of {', '.join(EPSILONS[1:])})")
    heads, kv_heads = content["num_attention_heads"], content.get("num_key_value_heads")
    if kv_heads is not None and heads % kv_heads:
        refuse(where, "num_key_value_heads", kv_heads, f"a divisor of num_attention_heads, {heads}")
    if (content.get("head_dim") or 0) % 2:
        refuse(where, "head_dim", content["head_dim"], "an even number: rotary embeddings rotate pairs of dimensions")
    if content.get("per_layer_config") is not None:
        refuse(where, "per_layer_config", content["per_layer_config"], "none: all layers must have the same shapes")
    token_ids(where, "eos_token_id", content.get("eos_token_id"), content["vocab_size"])


def _check_rope(where: object, content: dict[str, Any], name: str) -> None:
    """Check rotary parameters: those of all layers, or those of each type of layers under its name."""
    check(where, content, ROPE, f"{name}.")
    for kind in LAYER_TYPES:
        own = content.get(kind)
        if own is not None and not isinstance(own, dict):
            refuse(where, f"{name}.{kind}", own, "an object")
        check(where, own or {}, ROPE, f"{name}.{kind}.")


def check_tokenizer(path: Path) -> None:
    """Check a `tokenizer_config.json`, if there is one, against the table. Raises ValueError."""
    content = read_json(path) if path.exists() else {}
    check(path, content, TOKENIZER)
    for token in content.get("added_tokens_decoder") or {}:
        if not token.isdecimal() or len(token) > 9 or int(token) >= MAX_VOCABULARY:
            refuse(path, "added_tokens_decoder", token, f"ids below {MAX_VOCABULARY} as its keys")


def check_vocabulary(directory: Path) -> None:
    """Check the ids in the files from which a tokenizer is built: the `tokenizers` library allocates memory for every
    id up to the largest, and ends the process where there is too little. Raises ValueError naming file and token."""
    for name in ("tokenizer.json", "vocab.json", "added_tokens.json"):
        path = directory / name
        if not path.is_file():
            continue
        content = read_json(path)
        for token, index in content.items() if name != "tokenizer.json" else _tokenizer_ids(content):
            if isinstance(index, int) and index >= MAX_VOCABULARY:
                refuse(path, f"the id of token {short_repr(token)}", index, f"an id below {MAX_VOCABULARY}")


def _tokenizer_ids(content: dict[str, Any]) -> Iterator[tuple[object, object]]:
    """The tokens of a `tokenizer.json` and their ids. What has another form is left to the library, which refuses
    it; a list of tokens has no ids."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from vocabulary.items()
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict):
            yield token.get("content"), token.get("id")


def token_ids(where: object, name: str, value: object, vocab_size: int) -> frozenset[int]:
    """The ids of a field that holds null, one id or a list. Raises ValueError for an id outside the vocabulary."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    one = Field(int, 0, vocab_size - 1)
    if not all(one.accepts(token) for token in ids):
        refuse(where, name, value, f"a token of the vocabulary, or a list of them: {one}")
    return frozenset(ids)


@contextmanager
def as_value_errors(what: str) -> Iterator[None]:
    """Turn any error that a library raises for a file into a ValueError, since files are untrusted input."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the tokenizers library is not an Exception
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{what}: {reason}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises ValueError where it is no object, too large or nested too deeply."""
    if not path.is_file():
        raise ValueError(f"{path}: not a file")
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: the file has {size} bytes; expected at most {MAX_JSON_BYTES}")
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{path}: not valid JSON (nested too deeply)") from error
    except ValueError as error:  # not JSON, not UTF-8, or an integer with more digits than Python converts
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")  # noqa: TRY004
    _refuse_depth(path, content)
    return content


def _refuse_depth(path: Path, content: object) -> None:
    """Limit the nesting more strictly than the parser does, since copying and printing a value recurse too."""
    level: list[object] = [content]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _items(value)]
        if not level:
            return
    raise ValueError(f"{path}: not valid JSON for a checkpoint (nested more than {MAX_DEPTH} deep)")


def _items(value: object) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _bound(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
