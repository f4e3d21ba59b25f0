"""The special tokens by which a model fills in the middle of a text (FIM), found in its vocabulary or its GGUF file.

All families here were trained on prompts of one order: prefix token, text before the gap, suffix token, text after it,
middle token. The answer is the text of the gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthrus.checkpoint.sources import Source
from orthrus.checkpoint.tokenizer import TextTokenizer
from orthrus.checkpoint.validation import token_ids

FAMILIES = {
    "qwen2.5-coder": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "starcoder2": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "deepseek-coder": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    "codellama": ("▁<PRE>", "▁<SUF>", "▁<MID>"),
}
"""Prefix, suffix and middle token by the family that is best known for them. CodeGemma and Granite 4 have those of
qwen2.5-coder, Granite-code those of starcoder2."""
PADDING = ("<|fim_pad|>", "<fim_pad>")
REPOSITORY = ("<|repo_name|>", "<repo_name>", "<|reponame|>", "<reponame>")
FILE = ("<|file_sep|>", "<file_sep>", "<|filename|>", "<filename>")
ENDS = ("<|file_separator|>", "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "▁<EOT>")
"""Further tokens by which these families end the text of a gap."""
GGUF_KEYS = {
    "prefix": ("fim_pre_token_id", "prefix_token_id"), "suffix": ("fim_suf_token_id", "suffix_token_id"),
    "middle": ("fim_mid_token_id", "middle_token_id"), "padding": ("fim_pad_token_id",),
    "repository": ("fim_rep_token_id",), "file": ("fim_sep_token_id",),
}  # fmt: skip
"""Fields of GGUF files below `tokenizer.ggml.`; the second name is that of older files."""


@dataclass(frozen=True)
class FimTokens:
    """Token ids. repository and file go before the name of a repository and of a file, None where there are none.

    ends: all tokens that end the text of a gap, beside the end tokens of the model. special: the texts that stand for
    special tokens in a prompt, and must not in a file.
    """

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None
    ends: frozenset[int]
    special: frozenset[str]


def of_source(source: Source, text: TextTokenizer, vocab_size: int) -> FimTokens | None:
    """The FIM tokens of a checkpoint, as `find` has them."""
    return find(text, vocab_size, source.path, source.header.fields if source.gguf else {})


def find(text: TextTokenizer, vocab_size: int, path: Path, fields: Mapping[str, Any]) -> FimTokens | None:
    """The FIM tokens of a tokenizer; None where it has none.

    vocab_size: of the model, which may not know all tokens of its tokenizer. path, fields: the metadata of a GGUF file,
    empty for other files; what it states counts. Raises ValueError naming the field that is outside of the vocabulary.
    """
    vocabulary = {token: index for token, index in text.vocabulary().items() if index < vocab_size}
    ids = _of_names(vocabulary) | _of_gguf(path, fields, vocab_size)
    if not {"prefix", "suffix", "middle"} <= ids.keys():
        return None
    known = frozenset(ids.values())
    names = {token for token, index in vocabulary.items() if index in known}
    return FimTokens(
        ids["prefix"], ids["suffix"], ids["middle"], ids.get("repository"), ids.get("file"),
        ends=known | {vocabulary[name] for name in ENDS if name in vocabulary},
        special=text.special_tokens() | names,
    )  # fmt: skip


def _of_names(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The ids of the first family whose three tokens are all in the vocabulary."""
    names = next((names for names in FAMILIES.values() if all(name in vocabulary for name in names)), None)
    if names is None:
        return {}
    ids = {kind: vocabulary[name] for kind, name in zip(("prefix", "suffix", "middle"), names, strict=True)}
    for kind, candidates in (("padding", PADDING), ("repository", REPOSITORY), ("file", FILE)):
        known = _first(candidates, vocabulary)
        ids |= {} if known is None else {kind: vocabulary[known]}
    return ids


def _of_gguf(path: Path, fields: Mapping[str, Any], size: int) -> dict[str, int]:
    ids: dict[str, int] = {}
    for kind, keys in GGUF_KEYS.items():
        key = _first([f"tokenizer.ggml.{key}" for key in keys], fields)
        if key is not None:
            for token in token_ids(path, key, fields[key], size):
                ids[kind] = token
    return ids


def _first(names: Iterable[str], known: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in known), None)
