"""From a name to a decoder: a local directory, a GGUF file, the bundled demo model, or a hub id.

`transformers` supplies configs, tokenizers and the hub; the weights go straight from their files into our decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import published
from orthrus.checkpoint.sources import (
    DEMO,
    ModelConfig,
    Source,
    end_token_ids,
    read_config,
    read_tokenizer,
    resolve,
    vocabulary_digest,
)
from orthrus.checkpoint.tensors import TensorFile
from orthrus.checkpoint.weights import fill, fitting_decoder
from orthrus.config import DiffusionConfig
from orthrus.model import families
from orthrus.model.decoder import Decoder

DEMO_DIFFUSION = DiffusionConfig(block_size=8, mask_token_id=3, trained_rows=7)
"""Token 3 (`<repo_name>`) is never produced in chat; it serves as the mask token."""

NO_ADAPTER = "none"
BUNDLED = Path(__file__).parents[1] / "bundled" / DEMO


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
    provenance: dict[str, Any] = field(default_factory=dict)


def load(
    name: str,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_other_backbone: bool = False,
) -> Checkpoint:
    """Load a checkpoint on `device` in `dtype` (bfloat16 where None), with plain weights, as training and export need.

    The demo model brings its own adapter; "none" leaves it without (its view is then an untrained copy).

    Raises ValueError naming the file, tensor, family or setting that is wrong, and what would help.
    """
    found = _find(name, revision)
    source, config = found.source, found.config.decoder
    tokenizer = read_tokenizer(source, found.config.hf)
    ends = end_token_ids(source, found.config.hf, tokenizer)
    digest = found.files.digest(tied_head=config.tied_head)
    identity = adapters.BackboneIdentity(source.id, source.revision, digest, vocabulary_digest(tokenizer))
    warnings: list[str] = []
    provenance: dict[str, Any] = {}
    adapter, bundled = _chosen_adapter(source, adapter)
    if adapter is not None:
        chosen = adapters.read_config(adapter)
        provenance = chosen.provenance
        warning = adapters.check_backbone(chosen, config, identity, allow_other=allow_other_backbone or bundled)
        warnings += [warning] if warning else []
    decoder, view = _read_decoder(found, adapter, dtype, device)
    return Checkpoint(decoder, tokenizer, ends, identity, view, found.config.content, tuple(warnings), provenance)


@dataclass(frozen=True)
class _Found:
    """A checkpoint whose config and tensors fit one another, before any weight is read."""

    source: Source
    files: TensorFile
    config: ModelConfig


def _find(name: str, revision: str | None) -> _Found:
    source = resolve(name, revision)
    found = _Found(source, source.files(), read_config(source))
    fitting_decoder(found.config.decoder, None, found.files)
    return found


def load_decoder(name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Decoder:
    """The unprepared decoder alone, for a checkpoint without a tokenizer. Raises ValueError as `load` does."""
    return _read_decoder(_find(name, None), None, dtype, device)[0]


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, without loading it: an empty decoder on the meta device carries config and sizes."""

    decoder: Decoder
    backbone: adapters.BackboneIdentity
    view: str
    adapter: adapters.AdapterConfig | None


def describe(name: str, adapter: str | Path | None = None, revision: str | None = None) -> Description:
    """Read everything but the weights. Raises ValueError as `load` does."""
    found = _find(name, revision)
    source, hf = found.source, found.config.hf
    tokenizer = read_tokenizer(source, hf)
    end_token_ids(source, hf, tokenizer)
    digests = found.files.digest(tied_head=found.config.decoder.tied_head), vocabulary_digest(tokenizer)
    chosen, _ = _chosen_adapter(source, adapter)
    diffusion, view_files, view = _diffusion_view(found, chosen)
    decoder = fitting_decoder(found.config.decoder, diffusion, view_files)
    config = adapters.read_config(chosen) if chosen is not None else None
    return Description(decoder, adapters.BackboneIdentity(source.id, source.revision, *digests), view, config)


def copy_projections(decoder: Decoder) -> None:
    """Start the diffusion view as a copy of the AR projections (section 3 of the method; also an untrained view)."""
    with torch.no_grad():
        for layer in decoder.decoder_layers:
            assert layer.diffusion is not None
            layer.diffusion.load_state_dict(layer.ar.state_dict())


def give_view(
    checkpoint: Checkpoint, block_size: int | None, mask_token: int | str | None, *, last_row: bool
) -> Decoder:
    """Give an unprepared checkpoint's decoder a view to train: the one it has, else copies of the AR projections.

    What is None stays as the view has it; a new view has blocks of 32. Raises ValueError where no mask token is known.
    """
    decoder, tokenizer = checkpoint.decoder, checkpoint.tokenizer
    had = decoder.diffusion
    if isinstance(mask_token, str):
        found = tokenizer.get_vocab().get(mask_token)
        if found is None:
            raise ValueError(f"mask token {mask_token!r} is not in the vocabulary; give its exact text or its id")
        mask_token = int(found)
    if mask_token is None and had is None:
        special = sorted(t for t in tokenizer.get_added_vocab() if t not in (tokenizer.chat_template or ""))
        shown = f" (special tokens that the chat template does not name: {', '.join(special[:6])})" if special else ""
        raise ValueError(f"a new view needs --mask-token: a token that never occurs in chat{shown}")
    rows = block_size or (had.block_size if had else 32)
    mask = had.mask_token_id if mask_token is None and had else mask_token
    assert mask is not None
    decoder.set_view(DiffusionConfig(rows, mask, rows if last_row else rows - 1))
    if had is None:
        copy_projections(decoder)
    return decoder


def _chosen_adapter(source: Source, adapter: str | Path | None) -> tuple[Path | None, bool]:
    """The directory of the adapter to load, and whether it is the one that comes with the demo model."""
    if adapter is not None:
        return (None if str(adapter) == NO_ADAPTER else Path(adapter)), False
    bundled = source.id == DEMO and (BUNDLED / adapters.CONFIG).is_file()
    return (BUNDLED if bundled else None), bundled


def _read_decoder(
    found: _Found, adapter: Path | None, dtype: torch.dtype | None, device: str | torch.device
) -> tuple[Decoder, str]:
    """The decoder with its weights, and where its diffusion view came from."""
    config = found.config.decoder
    diffusion, view_files, view = _diffusion_view(found, adapter)
    fitting_decoder(config, diffusion, view_files)
    decoder = Decoder(config, diffusion, dtype or torch.bfloat16, torch.device(device))
    fill(decoder, families.sources(config), found.files)
    if view_files is not None:
        fill(decoder, families.sources(config, "diffusion"), view_files)
    elif diffusion is not None:
        copy_projections(decoder)
    return decoder, view


def _diffusion_view(found: _Found, adapter: Path | None) -> tuple[DiffusionConfig | None, TensorFile | None, str]:
    """Which diffusion view: an adapter's, the checkpoint's own, untrained copies (demo), or none; and its weights."""
    source, content = found.source, found.config.content
    if adapter is not None:
        name = "bundled adapter" if adapter == BUNDLED else f"adapter {adapter}"
        return adapters.read_config(adapter).diffusion, adapters.weights(adapter), name
    if published.is_published(content, found.files):
        view = published.diffusion_config(content, source.config_file, found.config.decoder.vocab_size)
        return view, found.files, "in the checkpoint"
    if source.id == DEMO:
        return DEMO_DIFFUSION, None, "untrained copies of the AR projections"
    return None, None, "none"
