"""The weights of a decoder from the tensors of files.

Names and shapes are checked before memory is allocated; then the values are copied, fused and cast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthrus.checkpoint.tensors import TensorFile, finite, refuse_non_finite
from orthrus.config import DecoderConfig, DiffusionConfig
from orthrus.model import families
from orthrus.model.decoder import Decoder
from orthrus.quantization import Part, fused


def meta_decoder(config: DecoderConfig, diffusion: DiffusionConfig | None, files: TensorFile | None) -> Decoder:
    """A decoder on the meta device, which allocates no weights, checked against the tensors of a file.

    The file holds the diffusion view if `diffusion` is given, otherwise the backbone. Raises ValueError naming a tensor
    that is missing, has another shape or type, or is unknown.
    """
    decoder = Decoder(config, diffusion, torch.bfloat16, torch.device("meta"))
    if files is not None:
        parameters = dict(decoder.named_parameters(remove_duplicate=False))
        for ours, theirs in families.sources(config, "ar" if diffusion is None else "diffusion").items():
            for part, name in zip(split(config, ours, parameters[ours]), theirs, strict=True):
                _refuse_shape(files.shape(name), part.shape, f"{files.path}: tensor {name}")
        _refuse_unknown(files, config)
    return decoder


def fill(decoder: Decoder, sources: dict[str, tuple[str, ...]], files: TensorFile) -> None:
    """Copy tensors into the decoder, fused and cast.

    Raises ValueError naming a tensor that is missing, has a wrong shape, or overflows in the dtype of the decoder.
    """
    parameters = dict(decoder.named_parameters(remove_duplicate=False))
    linears = {f"{name}.weight": linear for name, linear in decoder.linears().items()}
    if decoder.config.tied_head:
        linears["embedding"] = decoder.head
    with torch.no_grad():
        for ours, theirs in sources.items():
            target = parameters[ours]
            parts: list[Part] = []
            for part, name in zip(split(decoder.config, ours, target), theirs, strict=True):
                stored, what = files.tensor(name), f"{files.path}: tensor {name}"
                _refuse_shape(stored.shape, part.shape, what)
                part.copy_(stored)
                if not finite(part):
                    refuse_non_finite(stored, what)
                    kind = str(decoder.dtype).removeprefix("torch.")
                    raise ValueError(f"{what} has values outside the range of {kind}; load it in another dtype")
                if ours in linears:
                    parts.append(Part(len(part), files.group_quantized(name)))
            if parts:
                linears[ours].group_quantized = fused(parts)


def split(config: DecoderConfig, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
    """The parts of a fused tensor, as views, in the order of its sources."""
    if ".gate_up." in name:
        return tensor.chunk(2)
    if ".qkv." not in name:
        return (tensor,)
    sizes = [heads * config.head_dim for heads in (config.heads, config.kv_heads, config.kv_heads)]
    return tensor.split(sizes)


def _refuse_shape(actual: Sequence[int], expected: Sequence[int], what: str) -> None:
    if list(actual) != list(expected):
        raise ValueError(f"{what} has shape {list(actual)}, the config asks for {list(expected)}")


def _refuse_unknown(files: TensorFile, config: DecoderConfig) -> None:
    """Refuse files with unread tensors: they mean that the config does not describe this model."""
    sources = {**families.sources(config), **families.sources(config, "diffusion")}
    known = {name for names in sources.values() for name in names}
    known |= {"lm_head.weight"} if config.tied_head else set()
    unknown = [n for n in files.names if n not in known and not n.endswith("rotary_emb.inv_freq")]
    if unknown:
        listed = ", ".join(name[:80] for name in sorted(unknown)[:4]) + (", ..." if len(unknown) > 4 else "")
        raise ValueError(
            f"{files.path}: {len(unknown)} unexpected tensors for a {config.family} with this config: {listed}"
        )
