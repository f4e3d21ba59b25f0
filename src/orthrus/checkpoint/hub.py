"""Load a checkpoint by name: a known model, a local directory, a GGUF file, or a hub id.

Weights are read from files directly into our decoder. `transformers` is imported only where a file needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from orthrus.checkpoint import adapter as adapters
from orthrus.checkpoint import bundled, draft_head, fim_tokens, known_models, low_rank, published
from orthrus.checkpoint.draft_head import HeadDescription
from orthrus.checkpoint.fim_tokens import FimTokens
from orthrus.checkpoint.foreign import refuse_foreign
from orthrus.checkpoint.generation_config import default_sampling, sampling_options
from orthrus.checkpoint.sources import (
    ModelConfig,
    Source,
    end_token_ids,
    read_config,
    read_tokenizer,
    resolve,
)
from orthrus.checkpoint.tensors import TensorFile
from orthrus.checkpoint.tokenizer import TextTokenizer
from orthrus.checkpoint.weights import fill, leave_embedding, meta_decoder
from orthrus.config import DiffusionConfig
from orthrus.file_cache import stamp
from orthrus.model.decoder import Decoder
from orthrus.model.tensor_names import sources

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEMO_DIFFUSION = DiffusionConfig(block_size=8, mask_token_id=3, trained_rows=8)
"""The view of the demo model; its mask token, 3 (`<repo_name>`), never occurs in chat."""

NO_ADAPTER = "none"


@dataclass(frozen=True)
class UnreadWeights:
    """Weights that the decoder does not hold yet: what identifies them, and the function that reads them into it."""

    identity: str
    read: Callable[[], None]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: decoder, tokenizer, end tokens, identity, config, and the origin of its diffusion view.

    sampling: the sampling options that the checkpoint recommends. fim: the tokens by which it fills in the middle of a
    text, None where it has none.
    """

    decoder: Decoder
    text: TextTokenizer
    end_token_ids: frozenset[int]
    backbone: adapters.BackboneIdentity
    view: str
    hf_config: dict[str, Any]
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    unread: UnreadWeights | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    fim: FimTokens | None = None

    @property
    def default_sampling(self) -> dict[str, Any]:
        """The settings of `orthrus generate`, `chat` and `serve` where the user says nothing."""
        return default_sampling(self.sampling)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of transformers, which training and export need."""
        return self.text.full()


def load(
    name: str,
    *,
    adapter: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    allow_other_backbone: bool = False,
    lazily: bool = False,
) -> Checkpoint:
    """Load a checkpoint on `device` in `dtype` (bfloat16 if None), with unpacked weights, as training and export need.

    lazily: do not read the weights; `unread` reads them later, if no packed copy is cached.

    Views of known models are bundled, and are found by the name or by the hash of the backbone; `adapter="none"` loads
    it without (the view of the demo model is then an untrained copy).

    Raises ValueError naming the file, tensor, family or setting that is wrong, and how to correct it.
    """
    files = _open(name, revision)
    source, config = files.source, files.config.decoder
    text = read_tokenizer(source, files.config)
    ends = end_token_ids(source, files.config.hf, text)
    digest = files.tensors.digest(tied_head=config.tied_head)
    identity = adapters.BackboneIdentity(source.id, source.revision, digest, text.vocabulary_digest())
    warnings: list[str] = []
    provenance: dict[str, Any] = {}
    adapter, is_bundled = _chosen_adapter(files, identity, adapter)
    if adapter is not None:
        chosen = adapters.read_config(adapter)
        provenance = chosen.provenance
        warning = adapters.check_backbone(chosen, config, identity, allow_other=allow_other_backbone or is_bundled)
        warnings += [warning] if warning else []
    decoder, view, read = _unread_decoder(files, adapter, dtype, device)
    unread = UnreadWeights(_identity(files, adapter, digest), partial(read, True)) if lazily else None
    if unread is None:
        read(False)
    else:
        leave_embedding(decoder, files.tensors)
    return Checkpoint(
        decoder, text, ends, identity, view, files.config.content, tuple(warnings), provenance, unread,
        sampling_options(source), fim_tokens.of_source(source, text, config.vocab_size),
    )  # fmt: skip


@dataclass(frozen=True)
class _CheckpointFiles:
    """An opened checkpoint: config and tensors were checked against each other, no weight was read yet."""

    source: Source
    tensors: TensorFile
    config: ModelConfig


def _open(name: str, revision: str | None) -> _CheckpointFiles:
    source = resolve(name, revision)
    if not source.gguf:
        refuse_foreign(source.path)
    files = _CheckpointFiles(source, source.files(), read_config(source))
    meta_decoder(files.config.decoder, None, files.tensors)
    return files


def load_decoder(name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Decoder:
    """Load only the unprepared decoder, from a checkpoint without a tokenizer. Raises ValueError as `load` does."""
    decoder, _, read = _unread_decoder(_open(name, None), None, dtype, device)
    read(False)
    return decoder


@dataclass(frozen=True)
class Description:
    """A checkpoint without its weights: the decoder is on the meta device and carries config and shapes. stores_codes:
    whether matrices are stored in quantised groups."""

    decoder: Decoder
    backbone: adapters.BackboneIdentity
    view: str
    adapter: adapters.AdapterConfig | None
    default_sampling: dict[str, Any]
    stores_codes: bool


def describe(name: str, adapter: str | Path | None = None, revision: str | None = None) -> Description:
    """Read all of a checkpoint except its weights. Raises ValueError as `load` does."""
    files = _open(name, revision)
    source = files.source
    text = read_tokenizer(source, files.config)
    end_token_ids(source, files.config.hf, text)
    digests = files.tensors.digest(tied_head=files.config.decoder.tied_head), text.vocabulary_digest()
    identity = adapters.BackboneIdentity(source.id, source.revision, *digests)
    chosen, _ = _chosen_adapter(files, identity, adapter)
    view = _view_files(files, chosen)
    decoder = meta_decoder(files.config.decoder, view.diffusion, view.tensors, view.rank)
    head, _ = _draft_head(files, chosen)
    if head is not None:
        decoder.set_draft_head(head.units)
    config = adapters.read_config(chosen) if chosen is not None else None
    codes = any(files.tensors.group_quantized(name) is not None for name in files.tensors.names)
    return Description(decoder, identity, view.origin, config, default_sampling(sampling_options(source)), codes)


def copy_projections(decoder: Decoder) -> None:
    """Initialise the diffusion view as a copy of the AR projections (arXiv 2605.12825, section 3)."""
    with torch.no_grad():
        for layer in decoder.decoder_layers:
            assert layer.diffusion is not None
            layer.diffusion.load_state_dict(layer.ar.state_dict())


def _chosen_adapter(
    files: _CheckpointFiles, identity: adapters.BackboneIdentity, adapter: str | Path | None
) -> tuple[Path | None, bool]:
    """The directory of the adapter to load, and whether it is a bundled one; none for a checkpoint with a view in
    it."""
    if adapter is not None:
        return (None if str(adapter) == NO_ADAPTER else Path(adapter)), False
    if published.is_published(files.config.content, files.tensors):
        return None, False
    view = bundled.view_for(identity)
    return view, view is not None


def _unread_decoder(
    files: _CheckpointFiles, adapter: Path | None, dtype: torch.dtype | None, device: str | torch.device
) -> tuple[Decoder, str, Callable[[bool], None]]:
    """The decoder, the origin of its diffusion view, and the function that reads its weights (see `fill`)."""
    config = files.config.decoder
    view = _view_files(files, adapter)
    meta_decoder(config, view.diffusion, view.tensors, view.rank)
    decoder = Decoder(config, view.diffusion, dtype or torch.bfloat16, torch.device(device))
    if view.rank is not None:
        low_rank.make_empty(decoder, view.rank)
    head, directory = _draft_head(files, adapter)
    if head is not None:
        decoder.set_draft_head(head.units)

    def read(lazily: bool) -> None:
        if head is not None:
            draft_head.read(directory, head, decoder)
        copies = view.diffusion is not None and view.tensors is None
        fill(decoder, sources(config), files.tensors, lazily=lazily and not copies)
        low_rank.attach(decoder)
        if view.tensors is not None:
            names = sources(config, "diffusion") if view.rank is None else low_rank.sources(config)
            fill(decoder, names, view.tensors, lazily=lazily)
        elif copies:
            copy_projections(decoder)

    return decoder, view.origin, read


def _identity(files: _CheckpointFiles, adapter: Path | None, digest: str) -> str:
    """What the weights of backbone and view follow from: the digest, and the state of the files of the view."""
    view = _view_files(files, adapter)
    if view.tensors is None:
        return repr((digest, view.diffusion))
    path, (head, _) = view.tensors.path, _draft_head(files, adapter)
    weights = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return repr((digest, view.diffusion, head, stamp(*weights)))


def _draft_head(files: _CheckpointFiles, adapter: Path | None) -> tuple[HeadDescription | None, Path]:
    """The draft head that belongs to the view, if it has one, and the directory of its file."""
    if adapter is not None:
        return adapters.read_config(adapter).draft_head, adapter
    where = files.source.config_file
    if not published.is_published(files.config.content, files.tensors):
        return None, where.parent
    return draft_head.describe(where, files.config.content), where.parent


@dataclass(frozen=True)
class _ViewFiles:
    """The config, weights and origin of a view, and its rank where an adapter holds factors."""

    diffusion: DiffusionConfig | None
    tensors: TensorFile | None
    origin: str
    rank: int | None = None


def _view_files(files: _CheckpointFiles, adapter: Path | None) -> _ViewFiles:
    """The view: that of an adapter, that of the checkpoint, untrained copies (demo), or none."""
    source, content = files.source, files.config.content
    if adapter is not None:
        name = "bundled adapter" if adapter.parent == known_models.BUNDLED else f"adapter {adapter}"
        config = adapters.read_config(adapter)
        return _ViewFiles(config.diffusion, adapters.weights(adapter), name, config.rank)
    if published.is_published(content, files.tensors):
        view = published.diffusion_config(content, source.config_file, files.config.decoder.vocab_size)
        return _ViewFiles(view, files.tensors, "in the checkpoint")
    if source.id == known_models.DEMO:
        return _ViewFiles(DEMO_DIFFUSION, None, "untrained copies of the AR projections")
    return _ViewFiles(None, None, "none")
