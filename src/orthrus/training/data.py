"""The training corpus: documents as token ids with the spans of assistant turns, and held-out documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerBase

from orthrus import prompt_files
from orthrus.checkpoint.adapter import BackboneIdentity
from orthrus.checkpoint.tensors import save_tensors
from orthrus.file_cache import cache_directory, write_atomically
from orthrus.training import chat
from orthrus.training.anchors import candidates
from orthrus.training.config import TrainConfig
from orthrus.training.shards import MANIFEST, is_packed, read_records, unfinished


@dataclass(frozen=True)
class Document:
    """One conversation: its tokens, and the half-open spans of the assistant turns."""

    id: str
    tokens: list[int]
    spans: list[tuple[int, int]]

    @property
    def prompt(self) -> list[int]:
        """The tokens before the first assistant turn."""
        return self.tokens[: self.spans[0][0]]


@dataclass(frozen=True)
class Corpus:
    """Training documents, documents held out for validation, notices for the user, and the sources of the data."""

    documents: list[Document]
    held_out: list[Document]
    notices: list[str] = field(default_factory=list)
    sources: list[dict[str, object]] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """The sha256 of all documents."""
        content = [(d.id, d.tokens, d.spans) for d in (*self.documents, *self.held_out)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def load(
    paths: list[Path], tokenizer: PreTrainedTokenizerBase, end_token_ids: frozenset[int], config: TrainConfig,
    backbone: BackboneIdentity | None = None,
) -> Corpus:  # fmt: skip
    """Read directories of distilled shards, packed files of them, and JSONL files of complete conversations.

    Documents without an assistant turn to train on are skipped, and those longer than a sequence are truncated; both
    are counted in `notices`. backbone: the model that is trained; shards of another one are noticed, and refused where
    its vocabulary is another. Raises ValueError where too few documents remain or a file is invalid.
    """
    loaded: list[Document] = []
    sources, notices, kept = [], [], []
    for path in paths:
        distilled = path.is_dir() or is_packed(path)
        read = _read_distilled(path, backbone) if distilled else _read_file(path, tokenizer, end_token_ids)
        documents, source, noticed = read
        sources.append({"path": path.name, "documents": len(documents), **source})
        notices += noticed
        loaded += documents
    long = sum(len(d.tokens) > config.sequence_length for d in loaded)
    if long:
        notices.append(f"{long} of {len(loaded)} records are longer than {config.sequence_length} tokens: truncated")
    for document in loaded:
        spans = [(a, min(b, config.sequence_length)) for a, b in document.spans if a < config.sequence_length - 1]
        cut = Document(document.id, document.tokens[: config.sequence_length], spans)
        if candidates(cut.spans):
            kept.append(cut)
    if len(kept) < len(loaded):
        notices.append(
            f"{len(loaded) - len(kept)} of {len(loaded)} records have no assistant turn to train on: skipped"
        )
    if len(kept) <= config.held_out:
        raise ValueError(
            f"usable records: {len(kept)}, and {config.held_out} are held out for validation; give more data, or lower"
            " held_out (--held-out)"
        )
    order = sorted(range(len(kept)), key=lambda n: hashlib.sha256(f"{kept[n].id}/{n}".encode()).digest())
    held = set(order[: config.held_out])
    return Corpus([d for n, d in enumerate(kept) if n not in held], [kept[n] for n in sorted(held)], notices, sources)


Read = tuple[list[Document], dict[str, object], list[str]]
"""The documents of a file or directory, its entry in `Corpus.sources`, and notices."""


def _read_distilled(path: Path, backbone: BackboneIdentity | None) -> Read:
    manifest, content = read_records(path)
    documents = [Document(r["id"], r["tokens"], [(a, b) for a, b in r["spans"]]) for r in content]
    notices = [_other_backbone(path, manifest["backbone"], backbone)] if backbone else []
    if path.is_dir() and (counts := unfinished(manifest)):
        notices.append(
            f"{path} holds {counts[0]} of {counts[1]} prompts: the distillation is unfinished; run the same `orthrus"
            " distill` to go on"
        )
    identity = (path / MANIFEST, "manifest_sha256") if path.is_dir() else (path, "sha256")
    sha256 = hashlib.sha256(identity[0].read_bytes()).hexdigest()
    return documents, {identity[1]: sha256}, [notice for notice in notices if notice]


def _other_backbone(path: Path, wrote: dict[str, str], backbone: BackboneIdentity) -> str:
    """A notice where another backbone wrote these shards, else "". Manifests of earlier versions do not name the
    vocabulary."""
    if wrote.get("tokenizer_sha256", backbone.tokenizer_sha256) != backbone.tokenizer_sha256:
        raise ValueError(
            f"{path}: these shards were written by {wrote.get('id')}, whose vocabulary is another than that of"
            f" {backbone.id}: distil this model's own answers with `orthrus distill`"
        )
    if wrote["sha256"] == backbone.sha256:
        return ""
    return f"{path} was written by another backbone ({wrote.get('id')}); answers of the model itself teach more"


def _read_file(path: Path, tokenizer: PreTrainedTokenizerBase, end_token_ids: frozenset[int]) -> Read:
    if not path.is_file():
        raise ValueError(f"{path}: no such file or directory of shards")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    vocabulary = json.dumps([tokenizer.chat_template, sorted(tokenizer.get_vocab().items()), sorted(end_token_ids)])
    key = hashlib.sha256(f"{sha256}{vocabulary}".encode()).hexdigest()[:16]
    documents = _cached(
        cache_directory() / f"tokens-{key}.safetensors", lambda: _encode(data, path, tokenizer, end_token_ids)
    )
    return documents, {"sha256": sha256}, []


def _encode(
    data: bytes, path: Path, tokenizer: PreTrainedTokenizerBase, end_token_ids: frozenset[int]
) -> list[Document]:
    documents = []
    for number, record in prompt_files.lines(data, str(path)):
        where = f"{path}, line {number}"
        messages = prompt_files.messages_of(record, where)
        if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
            raise ValueError(f"{where}: no assistant turn has text; write answers with `orthrus distill`")
        encoded = chat.encode(tokenizer, messages, end_token_ids, reply=False)
        documents.append(Document(str(record.get("id", f"line-{number}")), encoded.tokens, encoded.spans))
    if not documents:
        raise ValueError(f"{path}: no records in it")
    return documents


def _cached(path: Path, compute: Callable[[], list[Document]]) -> list[Document]:
    """Documents tokenised once and cached on disk. Failures to read or write the cache are ignored."""
    try:
        with safe_open(path, "pt") as stored:
            ids = json.loads(stored.metadata()["ids"])
            tokens, spans = stored.get_tensor("tokens").tolist(), stored.get_tensor("spans").tolist()
            ends, span_ends = stored.get_tensor("ends").tolist(), stored.get_tensor("span_ends").tolist()
        return [
            Document(identity, tokens[a:b], [(s, e) for s, e in spans[c:d]])
            for identity, a, b, c, d in zip(ids, [0, *ends], ends, [0, *span_ends], span_ends, strict=False)
        ]
    except (OSError, SafetensorError, KeyError, ValueError):
        documents = compute()
    flat = {
        "tokens": torch.tensor([token for d in documents for token in d.tokens], dtype=torch.int32),
        "spans": torch.tensor([span for d in documents for span in d.spans], dtype=torch.int32).view(-1, 2),
        "ends": torch.tensor([len(d.tokens) for d in documents]).cumsum(0),
        "span_ends": torch.tensor([len(d.spans) for d in documents]).cumsum(0),
    }
    ids = json.dumps([d.id for d in documents])
    try:
        write_atomically(path.parent, {path.name: lambda staged: save_tensors(staged, flat, {"ids": ids})})
    except OSError:
        return documents
    return documents
