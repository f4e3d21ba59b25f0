"""`orthrus info`: describe a checkpoint without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from orthrus.cli._defaults import described
from orthrus.cli._help import OUTPUT
from orthrus.cli._info import adapter_record, checkpoint_record, known_record
from orthrus.cli._shared import AdapterOption, quiet, table_console

if TYPE_CHECKING:
    from orthrus.cli._info import Record

Row = tuple[str, Any]


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A name of `orthrus models`, a checkpoint directory, a .gguf file, an adapter directory, or a hub id."
        ),
    ] = "smollm2-demo",
    adapter: AdapterOption = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the description as JSON, with one field per fact.", rich_help_panel=OUTPUT),
    ] = False,
) -> None:
    """Describe a checkpoint: backbone, diffusion view, sizes, and the share of trained weights.

    Of a known model whose weights are not on this machine it says what is known without them; nothing is downloaded.
    """
    from orthrus.checkpoint import adapter as adapters
    from orthrus.checkpoint import known_models

    quiet()
    known = known_models.known(model)
    if (Path(model) / adapters.CONFIG).is_file():
        record, rows = adapter_record(Path(model)), _adapter_rows
    elif known is not None and known.find() is None:
        record, rows = known_record(known), _known_rows
    else:
        record, rows = checkpoint_record(model, adapter), _checkpoint_rows
    if as_json:
        print(json.dumps(record, indent=2))
        return
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(record):
        table.add_row(name, str(value))
    table_console().print(table)


ARITHMETIC = {
    "int8": "int8 activations times the codes of the file, in plain and drafted decoding (where there are C kernels for"
    " them); --quantize none computes in bfloat16",
    "bfloat16": "bfloat16, in plain and drafted decoding; --quantize int8 is another model (orthrus bench perplexity)",
}


def _checkpoint_rows(record: Record) -> Iterator[Row]:
    yield "checkpoint", record["id"]
    yield from _shape_rows(record)
    yield "context", record["context"]
    yield "sampling by default", described(record["default_sampling"])
    yield "backbone parameters", f"{record['backbone_parameters'] / 1e6:.1f} M"
    yield "diffusion view", record["diffusion_view"] or "none"
    if record["features"]:
        yield "features", ", ".join(record["features"])
        for kernels, lacking in record["reference_features"].items():
            yield f"reference runs in place of {kernels}", ", ".join(lacking) or "nothing"
    if record["diffusion_view"]:
        trained = record["diffusion_parameters"]
        share = trained / (trained + record["backbone_parameters"])
        yield "diffusion parameters", f"{trained / 1e6:.1f} M ({share:.1%} of all)"
        yield from _view_rows(record)
    yield "arithmetic by default", ARITHMETIC[record["default_arithmetic"]]
    yield "weights in bfloat16", f"{record['bfloat16_weight_bytes'] / 1e6:.0f} MB"
    yield (
        "cache per token in bfloat16",
        f"{record['bfloat16_cache_bytes_per_token'] / 1e3:.1f} KB, shared by both views",
    )
    yield "backbone sha256", record["backbone_sha256"]
    yield "tokenizer sha256", record["tokenizer_sha256"]
    library = f"{record['kernel_library_origin']}: {record['kernel_library']}"
    none = "none is ready: a C compiler builds one on first use"
    yield "C kernels in bfloat16", library if record["kernel_library"] else none
    other = record["adapter_backbone_sha256"]
    if other is not None:
        yield "adapter's backbone", "this one" if other == record["backbone_sha256"] else f"another: {other}"


def _shape_rows(record: Record) -> Iterator[Row]:
    yield "family", record["family"]
    yield "layers, hidden size", f"{record['layers']}, {record['hidden_size']}"
    heads = f"{record['query_heads']}, {record['kv_heads']}, {record['head_dim']}"
    yield "query heads, key/value heads, head size", heads
    yield "vocabulary", record["vocabulary_size"]


def _known_rows(record: Record) -> Iterator[Row]:
    yield "known model", f"{record['id']}: {record['description']}, {record['licence']}"
    yield from _shape_rows(record)
    yield "diffusion view", record["diffusion_view"] or "none"
    if record["diffusion_view"]:
        yield from _view_rows(record)
    yield "weights", f"{record['origin']}\n{record['file']}, {record['bytes'] / 1e6:.0f} MB\nsha256 {record['sha256']}"
    yield "on this machine", f"no: {record['remedy']}"


def _adapter_rows(record: Record) -> Iterator[Row]:
    yield "adapter", record["id"]
    yield "backbone", record["backbone_id"]
    yield "backbone sha256", record["backbone_sha256"]
    yield from _view_rows(record)
    yield "tensors", record["tensors"]
    yield "size", f"{record['bytes'] / 1e6:.1f} MB"
    yield "provenance", json.dumps(record["provenance"])


def _view_rows(record: Record) -> Iterator[Row]:
    yield "block size, trained rows", f"{record['block_size']}, {record['trained_rows']}"
    yield "mask token", record["mask_token_id"]
    if record["rank"]:
        yield "rank", f"{record['rank']}: its projections are those of the backbone and factors of this rank"
    if record["draft_vocabulary_size"]:
        yield "draft vocabulary", f"{record['draft_vocabulary_size']} tokens"
