"""Config and tokenizer of a GGUF file without `transformers`, whose conversion takes several seconds.

Covered are Llama files with byte-level BPE and no extras, such as the demo. The files and the tokenizer are those that
`transformers` makes, except that it does not know of `DIGITS_APART`; where they could differ otherwise, the answer is
None and the caller asks `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from orthrus.checkpoint.gguf_header import Header, read_header
from orthrus.checkpoint.tokenizer import Settings, digest_of_vocabulary
from orthrus.checkpoint.validation import MAX_VOCABULARY
from orthrus.file_cache import save_json

TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
STATED = {
    "context_length": "max_position_embeddings", "block_count": "num_hidden_layers", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta", "rope.dimension_count": "head_dim", "vocab_size": "vocab_size",
}  # fmt: skip
"""Metadata of a Llama that the file must state, and the fields of its config."""
CONTROL, NORMAL = 3, 1
"""Types of tokens."""
SPECIAL = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip
DEFAULT_SPECIAL = "<|endoftext|>"
"""The token that `transformers` would add to a vocabulary without it."""
PLAIN_SPLIT = ("smollm", "gpt-2", "default")
"""Values of `tokenizer.ggml.pre` for which text is split as GPT-2 splits it."""
DIGITS_APART = ("smollm",)
"""Those of them for which every digit is split off first, as models with such a value were trained."""
MAX_TOKENS = 100_000
"""Above this size `transformers` corrects the split of some models."""


@dataclass(frozen=True)
class Converted:
    """The config, the backend of the tokenizer and its settings."""

    config: dict[str, Any]
    backend: Tokenizer
    settings: Settings

    def save(self, directory: Path) -> None:
        """Write the files that `save_pretrained` writes of both."""
        save_json(directory / "config.json", self.config)
        (directory / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        special = self.settings.special_tokens
        length = int(1e30)  # what `transformers` writes for no limit
        kind = {"backend": "tokenizers", "tokenizer_class": "TokenizersBackend", "model_max_length": length}
        save_json(directory / "tokenizer_config.json", {**kind, **special})
        if self.settings.chat_template is not None:
            (directory / "chat_template.jinja").write_text(self.settings.chat_template, encoding="utf-8")


def converted(path: Path) -> Converted | None:
    """Convert a file whose header was checked; None where it is not covered."""
    header = read_header(path, keep=(TOKENS, TYPES, MERGES))
    config, special = _config(header), _special_tokens(header)
    if config is None or special is None:
        return None
    tokens, merges = header.arrays[TOKENS], [merge.split(" ") for merge in header.arrays[MERGES]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or any(len(merge) != 2 for merge in merges):
        return None
    pairs = [(first, second) for first, second in merges]
    backend = _backend(vocabulary, pairs, _control_tokens(header))
    split_digits(header, backend)
    template = header.fields.get("tokenizer.chat_template")
    digest = digest_of_vocabulary(backend.get_vocab(with_added_tokens=True))
    return Converted(config, backend, Settings(template, special, vocabulary[special["eos_token"]], digest))


def _config(header: Header) -> dict[str, Any] | None:
    """The content of `config.json`; None where `transformers` would fill in or change something."""
    fields = header.fields
    name = str(fields.get("general.name"))
    stated = {theirs: fields.get(f"llama.{ours}") for ours, theirs in STATED.items()}
    ids = {name: fields.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")}
    covered = fields["general.architecture"] == "llama" and "mistral" not in name and "general.name" in fields
    if not covered or any(value is None for value in (*stated.values(), *ids.values())):
        return None
    if any(key.startswith("llama.rope.scaling.") for key in fields):
        return None
    theta = stated.pop("rope_theta")
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "_model_name_or_path": name, **stated, **ids,
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"), "attention_bias": False, "mlp_bias": False,
        "hidden_act": "silu", "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": all(info.name != "output.weight" for info in header.tensors),
    }  # fmt: skip


def _special_tokens(header: Header) -> dict[str, Any] | None:
    """The special tokens by name; None for a tokenizer that is not covered."""
    fields, arrays = header.fields, header.arrays
    plain = fields.get("tokenizer.ggml.model") == "gpt2" and fields.get("tokenizer.ggml.pre") in PLAIN_SPLIT
    added = any(fields.get(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos"))
    if not plain or added or not {TOKENS, TYPES, MERGES} <= set(arrays):
        return None
    tokens, types = arrays[TOKENS], arrays[TYPES]
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    spelled = all(set(token) <= alphabet for token in tokens)
    if len(tokens) > min(MAX_TOKENS, MAX_VOCABULARY) or not spelled or set(types) - {NORMAL, CONTROL}:
        return None
    control, template = _control_tokens(header), fields.get("tokenizer.chat_template")
    ids = {name: fields.get(f"tokenizer.ggml.{key}") for name, key in SPECIAL.items()}
    special = {name: tokens[token] for name, token in ids.items() if token is not None}
    if "eos_token" not in special or not {DEFAULT_SPECIAL, *special.values()} <= set(control):
        return None
    return special if isinstance(template, str | None) else None


def split_digits(header: Header, backend: Tokenizer) -> None:
    """Let a backend split every digit off first, if the file asks for it."""
    if header.fields.get("tokenizer.ggml.pre") in DIGITS_APART:
        digits = pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _control_tokens(header: Header) -> list[str]:
    types: Sequence[int] = header.arrays[TYPES]
    return [token for token, kind in zip(header.arrays[TOKENS], types, strict=True) if kind == CONTROL]


def _backend(vocabulary: dict[str, int], merges: list[tuple[str, str]], control: list[str]) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it, which adds no special tokens to a text."""
    model = BPE(vocab=vocabulary, merges=merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return backend
