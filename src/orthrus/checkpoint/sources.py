"""Sources of checkpoints (a directory, a GGUF file, a known model, the hub), and their config and tokenizer."""

from __future__ import annotations

import atexit
import copy
import hashlib
import inspect
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthrus.checkpoint import (
    gguf_config,
    gguf_conversions,
    gguf_convert,
    gguf_rope,
    known_models,
    plain_config,
    published,
)
from orthrus.checkpoint import tokenizer as tokenizers
from orthrus.checkpoint.gguf import GgufFile, checked_header, rope_factors
from orthrus.checkpoint.gguf_header import Header
from orthrus.checkpoint.stacked_experts import unstacked
from orthrus.checkpoint.tensors import SafetensorFiles, TensorFile
from orthrus.checkpoint.validation import (
    TYPE,
    as_value_errors,
    check,
    check_backbone,
    check_tokenizer,
    check_vocabulary,
    read_json,
    token_ids,
)
from orthrus.decoder_config import DecoderConfig
from orthrus.file_cache import cache_directory, is_intact, save_directory, stamp
from orthrus.model import families

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERTERS = (gguf_config, gguf_conversions, gguf_rope, gguf_convert)
ENDS_OF_TURNS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_text|>")
"""Tokens that end a turn in any vocabulary whose chat template has them."""


@dataclass(frozen=True)
class ModelConfig:
    """The config of a backbone in three forms: as transformers reads it, as JSON, and for the decoder."""

    hf: Any
    content: dict[str, Any]
    decoder: DecoderConfig


@dataclass(frozen=True)
class Source:
    """The location of the files of a checkpoint."""

    id: str
    revision: str | None
    path: Path

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.is_file()

    @property
    def config_file(self) -> Path:
        """The file that errors about the config name."""
        return self.path if self.gguf else self.path / "config.json"

    def files(self) -> TensorFile:
        """The tensors of the checkpoint."""
        return GgufFile(self.path, self.header) if self.gguf else unstacked(SafetensorFiles(self.path))

    @cached_property
    def header(self) -> Header:
        """The checked header of a GGUF file, read once. Raises ValueError naming the invalid field."""
        return checked_header(self.path)


def resolve(name: str, revision: str | None) -> Source:
    """Find a checkpoint by name. Raises ValueError, with advice, where there is none."""
    path, known = Path(name).expanduser(), known_models.known(name)
    if known is not None:
        return Source(name, None, known.fetch())
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return Source(name, None, path)
    if path.exists():
        raise ValueError(f"{name}: expected a checkpoint directory or a .gguf file")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        advice = known_models.advice(name)
        raise ValueError(f"{name}: no such directory or file, no known model, and not a hub id (owner/name); {advice}")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if (known := known_models.in_repository(name)) is not None:
        raise ValueError(
            f"{name}: holds GGUF files; one of them is known as {known.name!r}. Give that name, or the path of a file"
            " that you have downloaded"
        )
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        path = Path(
            snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["consolidated*"])
        )
    except Exception as error:  # those of the HTTP library have no common type
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "Check the name and the network, or pass a directory"
        if isinstance(error, RevisionNotFoundError):
            remedy = f"It has no revision {revision!r}"
        elif isinstance(error, RepositoryNotFoundError):  # gated ones too
            remedy = "Check the name. If it is private or gated, accept its licence on the hub and run `hf auth login`"
        advice = known_models.advice(name)
        raise ValueError(f"{name}: cannot be fetched from the hub ({reason}). {remedy}; {advice}") from error
    return Source(name, path.name, path)


def read_config(source: Source) -> ModelConfig:
    """Read and check the config. Raises ValueError naming the file and the field that is wrong."""
    content, where = published.read_config(config_directory(source)), source.config_file
    check(where, content, TYPE)
    kind = published.backbone_type(content)
    with as_value_errors(str(where)):
        families.load(kind)
    check_backbone(where, content)
    hf: Any = plain_config.of(kind, content)
    if hf is None:
        with as_value_errors(f"{where}: transformers rejects it"):
            hf = _hf_config(kind, content)
    with as_value_errors(str(where)):
        return ModelConfig(hf, content, families.decoder_config(hf))


def _hf_config(kind: str, content: dict[str, Any]) -> Any:
    """The config of transformers, which turns fields into attributes: unknown fields must not overwrite its methods."""
    from transformers import CONFIG_MAPPING, AutoConfig

    config_class = CONFIG_MAPPING[kind]
    fields = {*inspect.signature(config_class).parameters, "rope_scaling"}
    kept = {name: value for name, value in content.items() if name in fields or not hasattr(config_class, name)}
    return AutoConfig.for_model(kind, **copy.deepcopy(kept))


def read_tokenizer(source: Source, config: ModelConfig) -> tokenizers.TextTokenizer:
    """Load the tokenizer without remote code. Raises ValueError where it cannot be loaded."""
    directory = config_directory(source)
    check_tokenizer(directory / "tokenizer_config.json")
    kind = published.backbone_type(config.content)

    def load() -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        check_vocabulary(directory)
        with as_value_errors(f"{source.path}: its tokenizer cannot be loaded"):
            hf = _hf_config(kind, config.content)
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                directory, config=hf, trust_remote_code=False
            )
            template = tokenizer.chat_template
            texts = template.values() if isinstance(template, dict) else [template or ""]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("its chat template is not a string")
            return tokenizer

    return tokenizers.load(directory, load)


def config_directory(source: Source) -> Path:
    """The directory of `config.json` and the tokenizer; for a GGUF file they are converted once and cached. Where the
    cache cannot be written, a temporary directory holds them until the process ends.

    Raises ValueError where transformers cannot convert them.
    """
    if not source.gguf:
        return source.path
    directory = cache_directory() / f"gguf-{stamp(source.path)}-{_conversion()}"
    if not is_intact(directory):
        with as_value_errors(f"{source.path}: config or tokenizer cannot be read from it"):
            try:
                _convert(source.path, source.header, directory)
            except OSError:
                directory = Path(tempfile.mkdtemp(prefix="orthrus-")) / "gguf"
                atexit.register(shutil.rmtree, directory.parent, ignore_errors=True)
                _convert(source.path, source.header, directory)
    return directory


@cache
def _conversion() -> str:
    """A hash of what converts: the code of this package, and the version of the library that it may ask."""
    code = [Path(str(module.__file__)).read_bytes() for module in CONVERTERS]
    parts = (code, Path(__file__).read_bytes(), version("transformers"))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _convert(path: Path, header: Header, directory: Path) -> None:
    names = [tensor.name for tensor in header.tensors]
    content = gguf_config.of(header.fields, names, rope_factors(path, header))
    made = gguf_convert.converted(path) if content is None else None
    if made is not None:
        save_directory(directory, made.save)
        tokenizers.save_snapshot(tokenizers.snapshot_of(directory), made.backend, made.settings)
        return
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

    folder, file = str(path.parent), path.name
    if content is None:
        config = AutoConfig.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    else:
        config = AutoConfig.for_model(**content)
    tokenizer: PreTrainedTokenizerBase
    if header.fields["general.architecture"] in gguf_config.UNKNOWN_TO_TRANSFORMERS:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, gguf_file=file)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, trust_remote_code=False)
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        gguf_convert.split_digits(header, tokenizer.backend_tokenizer)
    config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]

    def write(staged: Path) -> None:
        tokenizer.save_pretrained(staged)
        config.save_pretrained(staged)

    save_directory(directory, write)


def _ends_of_turns(header: Header, tokenizer: tokenizers.TextTokenizer) -> list[int]:
    """The ids by which turns end in a GGUF file, besides its end of text: named ones, and those of its template."""
    named = [header.fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eot", "eom")]
    template, ids = str(tokenizer.chat_template or ""), tokenizer.vocabulary()
    known = [ids[text] for text in ENDS_OF_TURNS if text in template and text in ids]
    return [*(own for own in named if own is not None), *known]


def end_token_ids(source: Source, hf: Any, tokenizer: tokenizers.TextTokenizer) -> frozenset[int]:
    """The ids that end a turn: those of the configs and of the tokenizer. A GGUF file may name its end of text alone.

    Raises ValueError naming the file of an id outside the vocabulary.
    """
    generation = source.path / "generation_config.json"
    ids = {source.config_file: hf.eos_token_id, f"{source.path}, its tokenizer": tokenizer.eos_token_id}
    if source.gguf:
        ids[f"{source.path}, the ends of its turns"] = _ends_of_turns(source.header, tokenizer)
    elif generation.exists():
        ids[generation] = read_json(generation).get("eos_token_id")
    return frozenset().union(*(token_ids(w, "eos_token_id", value, hf.vocab_size) for w, value in ids.items()))
