"""Tokenizers: text to token ids and back, with the chat template.

`TransformersTokenizer` asks `transformers`, whose import takes longer than the rest of a start. `FastTokenizer` needs
the `tokenizers` library alone. It is a snapshot of what `transformers` made of the files of a checkpoint: the same
backend, special tokens and template, hence the same ids. Snapshots are cached by the state of these files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenizers import Tokenizer

from orthrus import heap
from orthrus.checkpoint import chat_template as templates
from orthrus.checkpoint.validation import read_json
from orthrus.file_cache import cache_directory, is_intact, save_directory, save_json, stamp

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BACKEND, SETTINGS = "tokenizer.json", "settings.json"
FILES = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*")
"""The files of a checkpoint directory that decide about its tokenizer."""


LONG_TEXT = 20_000
"""Characters from which a text is encoded without holding Python's lock, which takes longer for short ones."""


class TextTokenizer(Protocol):
    """What generating needs of a tokenizer. thread_safe: whether several threads may call it at once."""

    thread_safe: bool

    @property
    def chat_template(self) -> Any:
        """The template, empty or None where there is none."""
        ...

    @property
    def eos_token_id(self) -> Any:
        """The token that ends a text, None where there is none."""
        ...

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """The ids of a text, with the special tokens that the tokenizer adds, or without them."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        ...

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> list[int]:
        """The ids of a conversation by the chat template, up to where the assistant's turn begins."""
        ...

    def vocabulary(self) -> dict[str, int]:
        """The ids of all tokens."""
        ...

    def special_tokens(self) -> frozenset[str]:
        """The texts that stand for special tokens in what is encoded."""
        ...

    def vocabulary_digest(self) -> str:
        """The sha256 over all tokens and their ids."""
        ...

    def backend_json(self) -> str | None:
        """The tokenizer in the JSON format of the `tokenizers` library, None where it is no such tokenizer."""
        ...

    def full(self) -> PreTrainedTokenizerBase:
        """The tokenizer of `transformers`."""
        ...


class TransformersTokenizer:
    """A tokenizer of `transformers`."""

    thread_safe = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.chat_template: Any = tokenizer.chat_template
        self.eos_token_id: Any = tokenizer.eos_token_id

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """See `TextTokenizer`, as for all below."""
        return [*self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]]

    def decode(self, tokens: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> list[int]:
        """See `TextTokenizer`."""
        chat: Any = list(messages)
        ids: Any = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
        )
        return list(ids)

    def vocabulary(self) -> dict[str, int]:
        """See `TextTokenizer`."""
        return dict(self._tokenizer.get_vocab())

    def special_tokens(self) -> frozenset[str]:
        """See `TextTokenizer`."""
        return frozenset(token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)

    def vocabulary_digest(self) -> str:
        """See `TextTokenizer`."""
        return digest_of_vocabulary(self.vocabulary())

    def backend_json(self) -> str | None:
        """See `TextTokenizer`."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if backend is None else str(backend.to_str())

    def full(self) -> PreTrainedTokenizerBase:
        """See `TextTokenizer`."""
        return self._tokenizer


@dataclass(frozen=True)
class Settings:
    """What a snapshot holds besides the backend. special_tokens: the variables that every template sees."""

    chat_template: str | None
    special_tokens: dict[str, Any]
    eos_token_id: int | None
    vocabulary_sha256: str


class FastTokenizer:
    """A backend of the `tokenizers` library with its chat template. `load` gives the tokenizer of `transformers`."""

    thread_safe = True

    def __init__(self, backend: Tokenizer, settings: Settings, load: Callable[[], PreTrainedTokenizerBase]) -> None:
        self._backend, self._settings, self._load = backend, settings, load
        self.chat_template, self.eos_token_id = settings.chat_template, settings.eos_token_id
        backend.no_truncation()
        backend.no_padding()

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """See `TextTokenizer`, as for all below."""
        if len(text) < LONG_TEXT:
            return list(self._backend.encode(text, add_special_tokens=special_tokens).ids)
        (encoded,) = self._backend.encode_batch([text], add_special_tokens=special_tokens)  # lets other threads run
        return list(encoded.ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """See `TextTokenizer`."""
        return str(self._backend.decode(list(tokens), skip_special_tokens=True))

    def render(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> list[int]:
        """See `TextTokenizer`."""
        names = {**self._settings.special_tokens, **variables, "add_generation_prompt": True}
        return self.encode(templates.render(self.chat_template or "", messages, names), special_tokens=False)

    def vocabulary(self) -> dict[str, int]:
        """See `TextTokenizer`."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def special_tokens(self) -> frozenset[str]:
        """See `TextTokenizer`."""
        return frozenset(token.content for token in self._backend.get_added_tokens_decoder().values() if token.special)

    def vocabulary_digest(self) -> str:
        """See `TextTokenizer`."""
        return self._settings.vocabulary_sha256

    def backend_json(self) -> str | None:
        """See `TextTokenizer`."""
        return str(self._backend.to_str())

    def full(self) -> PreTrainedTokenizerBase:
        """See `TextTokenizer`."""
        return self._full

    @cached_property
    def _full(self) -> PreTrainedTokenizerBase:
        return self._load()


def load(directory: Path, load_full: Callable[[], PreTrainedTokenizerBase]) -> TextTokenizer:
    """The tokenizer of a checkpoint directory: its snapshot, which is made by `load_full` where there is none yet."""
    snapshot = snapshot_of(directory)
    kept = _read(snapshot, load_full)
    if kept is not None:
        return kept
    full = load_full()
    settings = snapshot_settings(full)
    if settings is None:
        return TransformersTokenizer(full)
    backend: Tokenizer = full.backend_tokenizer
    save_snapshot(snapshot, backend, settings)
    return _read(snapshot, lambda: full) or TransformersTokenizer(full)


def save_snapshot(directory: Path, backend: Tokenizer, settings: Settings) -> None:
    """Write a snapshot. A cache that cannot be written is no error."""

    def write(staged: Path) -> None:
        (staged / BACKEND).write_text(backend.to_str(), encoding="utf-8")
        save_json(staged / SETTINGS, asdict(settings))

    with suppress(OSError):
        save_directory(directory, write)


def snapshot_settings(full: PreTrainedTokenizerBase) -> Settings | None:
    """The settings of a snapshot; None where a tokenizer does more than its backend and one template."""
    from transformers import PreTrainedTokenizerFast

    kind, plain = type(full), PreTrainedTokenizerFast
    own = ("__call__", "_encode_plus", "decode", "_decode", "apply_chat_template", "get_chat_template", "get_vocab")
    if not isinstance(full, plain) or any(getattr(kind, name) is not getattr(plain, name, None) for name in own):
        return None
    template, special = full.chat_template, full.special_tokens_map
    if full.split_special_tokens or not isinstance(template, str | None) or not _is_json(special):
        return None
    return Settings(template, dict(special), full.eos_token_id, digest_of_vocabulary(full.get_vocab()))


def digest_of_vocabulary(vocabulary: Mapping[str, int]) -> str:
    """The sha256 over all tokens and their ids, without those with which GGUF files fill a vocabulary up."""
    tokens = [(token, index) for token, index in sorted(vocabulary.items()) if token != f"[PAD{index}]"]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _read(snapshot: Path, load_full: Callable[[], PreTrainedTokenizerBase]) -> FastTokenizer | None:
    if not is_intact(snapshot):
        return None
    settings = Settings(**read_json(snapshot / SETTINGS))
    backend = Tokenizer.from_file(str(snapshot / BACKEND))
    heap.trim()  # the C library keeps what parsing took, as much as the tokenizer itself
    return FastTokenizer(backend, settings, load_full)


def snapshot_of(directory: Path) -> Path:
    """Where the snapshot of a checkpoint directory is cached: by the state of its files and the versions of the
    libraries that read them."""
    files = sorted(path for pattern in FILES for path in directory.glob(pattern) if path.is_file())
    libraries = [f"{name} {version(name)}" for name in ("transformers", "tokenizers")]
    return cache_directory() / f"tokenizer-{hashlib.sha256(repr((stamp(*files), libraries)).encode()).hexdigest()[:16]}"


def _is_json(values: Mapping[str, Any]) -> bool:
    return all(type(value) is str for value in values.values())
