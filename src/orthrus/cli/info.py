"""`orthrus info`: describe a checkpoint without loading its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from orthrus.cli._help import OUTPUT
from orthrus.cli._shared import AdapterOption, quiet


def command(
    model: Annotated[
        str,
        typer.Argument(help="smollm2-demo, a checkpoint directory, a .gguf file, an adapter directory, or a hub id."),
    ] = "smollm2-demo",
    adapter: AdapterOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the description as JSON.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Describe a checkpoint: backbone, diffusion view, sizes, and the share of trained weights."""
    from orthrus.checkpoint import adapter as adapters

    quiet()
    record = _adapter(Path(model)) if (Path(model) / adapters.CONFIG).is_file() else _checkpoint(model, adapter)
    if as_json:
        print(json.dumps(record, indent=2))
        return
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in record.items():
        table.add_row(name, str(value))
    Console(highlight=False).print(table)


def _checkpoint(model: str, adapter: str | None) -> dict[str, Any]:
    from orthrus.bench import features
    from orthrus.checkpoint import hub

    described = hub.describe(model, adapter)
    decoder, config = described.decoder, described.decoder.config
    sizes = {name: parameter.numel() for name, parameter in decoder.named_parameters()}
    trained = sum(size for name, size in sizes.items() if ".diffusion." in name or name.startswith("draft_head."))
    total = sum(sizes.values())
    record: dict[str, Any] = {
        "checkpoint": described.backbone.id,
        "family": config.family,
        "layers, hidden size": f"{config.layers}, {config.hidden_size}",
        "query heads, key/value heads, head size": f"{config.heads}, {config.kv_heads}, {config.head_dim}",
        "vocabulary": config.vocab_size,
        "context": config.max_positions,
        "backbone parameters": f"{(total - trained) / 1e6:.1f} M",
        "diffusion view": described.view,
    }
    if config.features:
        record["features"] = ", ".join(config.features)
        for name, lacking in features.lacking(config).items():
            record[f"reference runs in place of {name}"] = ", ".join(lacking) or "nothing"
    if decoder.diffusion is not None:
        diffusion = decoder.diffusion
        record |= {
            "diffusion parameters": f"{trained / 1e6:.1f} M ({trained / total:.1%} of all)",
            "block size, trained rows": f"{diffusion.block_size}, {diffusion.trained_rows}",
            "mask token": diffusion.mask_token_id,
        }
    elements = 2 * config.layers * config.kv_heads * config.head_dim
    record |= {
        "weights in bfloat16": f"{2 * total / 1e6:.0f} MB",
        "cache per token in bfloat16": f"{2 * elements / 1e3:.1f} KB, shared by both views",
        "backbone sha256": described.backbone.sha256,
        "tokenizer sha256": described.backbone.tokenizer_sha256,
        "C kernels in bfloat16": _library(),
    }
    if described.adapter is not None:
        fits = described.adapter.backbone.sha256 == described.backbone.sha256
        record["adapter's backbone"] = "this one" if fits else f"another: {described.adapter.backbone.sha256}"
    return record


def _library() -> str:
    """Which library of C kernels runs here, without compiling one."""
    from orthrus.backends.native import build
    from orthrus.file_cache import cache_directory

    library = build.ready("bfloat16", cache_directory())
    return f"{build.origin(library)}: {library}" if library else "none is ready: a C compiler builds one on first use"


def _adapter(directory: Path) -> dict[str, Any]:
    from orthrus.checkpoint import adapter as adapters

    config, files = adapters.read_config(directory), adapters.weights(directory)
    size = sum(f.stat().st_size for f in directory.iterdir() if f.is_file())
    return {
        "adapter": str(directory),
        "backbone": config.backbone.id,
        "backbone sha256": config.backbone.sha256,
        "block size, trained rows": f"{config.diffusion.block_size}, {config.diffusion.trained_rows}",
        "mask token": config.diffusion.mask_token_id,
        "tensors": len(files.names),
        "size": f"{size / 1e6:.1f} MB",
        "provenance": json.dumps(config.provenance),
    }
