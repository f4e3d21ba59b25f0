"""What `orthrus info` knows of a checkpoint, an adapter or a known model: one field per fact, numbers in units and not
in words.

docs/quickstart.md documents the fields. They keep their names, and every record of a kind has all of them; what does
not apply is null.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthrus.checkpoint.known_models import KnownModel

Record = dict[str, Any]


def checkpoint_record(name: str, adapter: str | None) -> Record:
    """The record of a checkpoint, whose weights are not read. Raises ValueError as loading does."""
    from orthrus.bench import features
    from orthrus.checkpoint import hub, low_rank

    described = hub.describe(name, adapter)
    decoder, config, diffusion = described.decoder, described.decoder.config, described.decoder.diffusion
    rank = low_rank.rank_of(decoder)
    sizes = {name: parameter.numel() for name, parameter in decoder.named_parameters()}
    trained = sum(size for name, size in sizes.items() if ".diffusion." in name or name.startswith("draft_head."))
    total = sum(sizes.values())
    low_rank.make_empty(decoder, None)
    merged = sum(parameter.numel() for parameter in decoder.parameters())
    return {
        "kind": "checkpoint",
        "id": described.backbone.id,
        "family": config.family,
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "query_heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocabulary_size": config.vocab_size,
        "context": config.max_positions,
        "features": list(config.features),
        "reference_features": features.lacking(config),
        "default_sampling": described.default_sampling,
        "backbone_parameters": total - trained,
        "diffusion_view": None if diffusion is None else described.view,
        "diffusion_parameters": None if diffusion is None else trained,
        "block_size": None if diffusion is None else diffusion.block_size,
        "trained_rows": None if diffusion is None else diffusion.trained_rows,
        "mask_token_id": None if diffusion is None else diffusion.mask_token_id,
        "rank": rank,
        "draft_vocabulary_size": None if diffusion is None else len(diffusion.draft_vocabulary or ()) or None,
        "default_arithmetic": "int8" if described.stores_codes else "bfloat16",
        "bfloat16_weight_bytes": 2 * merged,
        "bfloat16_cache_bytes_per_token": 2 * 2 * config.layers * config.kv_heads * config.head_dim,
        "backbone_sha256": described.backbone.sha256,
        "tokenizer_sha256": described.backbone.tokenizer_sha256,
        "adapter_backbone_sha256": None if described.adapter is None else described.adapter.backbone.sha256,
        **_library(),
    }


def adapter_record(directory: Path) -> Record:
    """The record of an adapter. Raises ValueError where its files are invalid."""
    from orthrus.checkpoint import adapter as adapters

    config, files = adapters.read_config(directory), adapters.weights(directory)
    return {
        "kind": "adapter",
        "id": str(directory),
        "backbone_id": config.backbone.id,
        "backbone_sha256": config.backbone.sha256,
        "block_size": config.diffusion.block_size,
        "trained_rows": config.diffusion.trained_rows,
        "mask_token_id": config.diffusion.mask_token_id,
        "rank": config.rank,
        "draft_vocabulary_size": len(config.diffusion.draft_vocabulary or ()) or None,
        "tensors": len(files.names),
        "bytes": sum(file.stat().st_size for file in directory.iterdir() if file.is_file()),
        "provenance": config.provenance,
    }


def known_record(model: KnownModel) -> Record:
    """The record of a known model whose weights are not on this machine: what is known of it without them. Raises
    ValueError where its bundled view is damaged."""
    from orthrus.checkpoint import adapter as adapters

    shapes = model.shapes
    view = None if model.view is None else adapters.read_config(model.view)
    return {
        "kind": "known model",
        "id": model.name,
        **{name: value for name, value in listing(model).items() if name not in ("name", "view_bundled", "path")},
        "family": shapes.family,
        "layers": shapes.layers,
        "hidden_size": shapes.hidden_size,
        "query_heads": shapes.heads,
        "kv_heads": shapes.kv_heads,
        "head_dim": shapes.head_dim,
        "vocabulary_size": shapes.vocab_size,
        "diffusion_view": None if view is None else "bundled adapter",
        "block_size": None if view is None else view.diffusion.block_size,
        "trained_rows": None if view is None else view.diffusion.trained_rows,
        "mask_token_id": None if view is None else view.diffusion.mask_token_id,
        "rank": None if view is None else view.rank,
        "draft_vocabulary_size": None if view is None else len(view.diffusion.draft_vocabulary or ()) or None,
    }


def listing(model: KnownModel) -> Record:
    """What `orthrus models` says of a model. path: its file on this machine; remedy: what to do where it is not
    here."""
    path, problem = None, None
    try:
        path = model.find()
    except ValueError as error:  # another file is in its place
        problem = str(error)
    advice = f"{'the first use fetches it; ' if model.fetches else ''}{model.remedy}"
    return {
        "name": model.name,
        "description": model.description,
        "licence": model.licence,
        "origin": model.origin.place,
        "file": model.file,
        "bytes": model.bytes,
        "sha256": model.sha256,
        "view_bundled": model.view is not None,
        "path": None if path is None else str(path),
        "remedy": problem or (advice if path is None else None),
    }


def _library() -> Record:
    """Which library of C kernels runs here in bfloat16, without compiling one."""
    from orthrus.backends.native import build
    from orthrus.file_cache import cache_directory

    library = build.ready("bfloat16", cache_directory())
    origin = None if library is None else build.origin(library)
    return {"kernel_library": None if library is None else str(library), "kernel_library_origin": origin}
