"""The backbone as GGUF files: the original file, and the same weights in Q8_0."""

from __future__ import annotations

from pathlib import Path

import gguf
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from orthrus.checkpoint.sources import resolve


def files(backbone: str, folder: Path, kind: str) -> dict[str, str]:
    """The path of one kind of file: `gguf`, the original, or `gguf_q8_0`, which is written once, to `folder`. Raises
    ValueError unless the backbone is GGUF."""
    source = resolve(backbone, None)
    if not source.gguf:
        raise ValueError(f"{backbone}: it is not a GGUF file, and this peer reads no others")
    if kind == "gguf":
        return {kind: str(source.path)}
    quantised = folder / "q8_0.gguf"
    if not quantised.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = quantised.with_suffix(".part")
        requantise(source.path, unfinished, GGMLQuantizationType.Q8_0)
        unfinished.replace(quantised)
    return {kind: str(quantised)}


def requantise(source: Path, target: Path, kind: GGMLQuantizationType) -> None:
    """Copy a GGUF file with its matrices quantised to another type; everything else is unchanged."""
    reader = GGUFReader(source)
    fields = {field.name: field for field in reader.fields.values() if not field.name.startswith("GGUF.")}
    writer = GGUFWriter(target, fields.pop("general.architecture").contents())
    for name, field in fields.items():
        array = field.types[0] == GGUFValueType.ARRAY
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[-1] if array else None)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 2:
            writer.add_tensor(tensor.name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
