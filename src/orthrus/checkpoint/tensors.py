"""Named tensors on disk, read one at a time: safetensors (whole or sharded) and GGUF. Never pickle.

Every error names the file and the tensor. `digest` is the identity of a backbone: the sha256 over its canonical source
tensors as stored, before any cast, fusion or quantisation.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

DIFFUSION_MARK = "_diff."


class TensorFile(Protocol):
    """Tensors by their Hugging Face names."""

    path: Path

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        ...

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        ...

    def digest(self, *, tied_head: bool) -> str:
        """The identity of the backbone."""
        ...


class SafetensorFiles:
    """The safetensors of a directory (one file, or shards under an index), or one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._homes: dict[str, Path] = {}
        for file in [path] if path.is_file() else _shards(path):
            try:
                with safe_open(file, "pt") as opened:
                    self._homes.update(dict.fromkeys(opened.keys(), file))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file}: cannot be read as safetensors ({error}); fetch the file again") from error

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._homes)

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored. Raises ValueError where it is missing or damaged."""
        if name not in self._homes:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        try:
            with safe_open(self._homes[name], "pt") as opened:
                return opened.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{self._homes[name]}: tensor {name} cannot be read ({error})") from error

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the backbone's tensors (cached by path, size and time)."""
        return _cached_digest(sorted(set(self._homes.values())), lambda: self._compute_digest(tied_head))

    def _compute_digest(self, tied_head: bool) -> str:
        kept = (n for n in self.names if DIFFUSION_MARK not in n and not (tied_head and n == "lm_head.weight"))

        def parts(name: str) -> tuple[str, memoryview]:
            tensor = self.tensor(name).contiguous()
            return f"{tensor.dtype}{tuple(tensor.shape)}", tensor.view(torch.uint8).numpy().reshape(-1).data

        return _digest(kept, parts)


class GgufFile:
    """A GGUF file of a llama-family or Qwen model, de-quantised on reading; names as Hugging Face has them."""

    TOP: ClassVar = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    BLOCK: ClassVar = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except (ValueError, KeyError, IndexError, OSError) as error:
            raise ValueError(f"{path}: cannot be read as GGUF ({error}); fetch the file again") from error
        self._architecture = str(self._field("general.architecture"))
        self._tensors = {self._hf_name(t.name): t for t in self._reader.tensors}

    @property
    def names(self) -> list[str]:
        """All tensor names."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """One tensor in fp32. Raises ValueError where it is missing or of a type that cannot be de-quantised."""
        from gguf import dequantize

        if name not in self._tensors:
            raise ValueError(f"{self.path}: tensor {name} is missing")
        stored = self._tensors[name]
        try:
            values = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32))
        except (NotImplementedError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {name} of type {stored.tensor_type.name}: {error}") from error
        return self._unpermute(name, values)

    def digest(self, *, tied_head: bool) -> str:
        """The sha256 of the tensors as stored, quantised blocks and all (cached by path, size and time)."""
        del tied_head  # a GGUF file holds a tied head once

        def parts(name: str) -> tuple[str, memoryview]:
            stored = self._tensors[name]
            header = f"{stored.tensor_type.name}{tuple(int(n) for n in stored.shape)}"
            return header, np.ascontiguousarray(stored.data).view(np.uint8).reshape(-1).data

        return _cached_digest([self.path], lambda: _digest(self.names, parts))

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise ValueError(f"{self.path}: the GGUF header lacks {key}")
        return field.contents()

    def _hf_name(self, name: str) -> str:
        stem, kind = name.rsplit(".", 1)
        if stem in self.TOP:
            return f"{self.TOP[stem]}.{kind}"
        if stem.startswith("blk."):
            _, index, part = stem.split(".", 2)
            if part in self.BLOCK:
                return f"model.layers.{index}.{self.BLOCK[part]}.{kind}"
        return name

    def _unpermute(self, name: str, values: Tensor) -> Tensor:
        """Undo the pairing of rotary dimensions that llama.cpp's converter applies to llama's q and k."""
        if self._architecture != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return values
        field = "head_count" if name.endswith("q_proj.weight") else "head_count_kv"
        heads = int(self._field(f"llama.attention.{field}"))
        shape = values.shape
        return values.view(heads, shape[0] // heads // 2, 2, *shape[1:]).transpose(1, 2).reshape(shape)


def write_atomically(directory: Path, files: dict[str, Callable[[Path], None]]) -> None:
    """Write several files of one directory, all or none: each to a temporary name, renamed once all are complete.

    Raises OSError (disk full, no permission) with the old files intact and the temporary ones gone.
    """
    directory.mkdir(parents=True, exist_ok=True)
    staged: dict[Path, Path] = {}
    try:
        for name, write in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
            os.close(handle)
            staged[Path(temporary)] = directory / name
            write(Path(temporary))
            with Path(temporary).open("rb+") as written:
                os.fsync(written.fileno())
        for temporary_path, final in staged.items():
            temporary_path.chmod(0o644)
            temporary_path.replace(final)
    finally:
        for temporary_path in staged:
            temporary_path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file; a full disk is an OSError, as for any other file."""
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from error


def save_json(path: Path, content: object) -> None:
    """Write one JSON file, readable by people."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cache_directory() -> Path:
    """Where small derived files may be kept between runs: $ORTHRUS_CACHE, else $XDG_CACHE_HOME/orthrus."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ORTHRUS_CACHE") or Path(base) / "orthrus")


def _shards(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ValueError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json; only safetensors are read"
        )
    try:
        shards = sorted({directory / name for name in json.loads(index.read_text())["weight_map"].values()})
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise ValueError(f"{index}: not a safetensors index ({error!r})") from error
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard}: the index names this shard, but it is missing")
    return shards


def _digest(names: Iterable[str], parts: Callable[[str], tuple[str, memoryview]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(names):
        header, data = parts(name)
        digest.update(f"{name} {header}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _cached_digest(files: list[Path], compute: Callable[[], str]) -> str:
    key = " ".join(f"{f.resolve()}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)
    store = cache_directory() / "digests.json"
    try:
        known = json.loads(store.read_text())
    except (OSError, json.JSONDecodeError):
        known = {}
    if key not in known:
        known[key] = compute()
        try:
            write_atomically(store.parent, {store.name: lambda path: save_json(path, known)})
        except OSError:
            return str(known[key])  # a cache that cannot be written is no reason to stop
    return str(known[key])
