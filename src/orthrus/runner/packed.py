"""Packed runners on disk: the packed weights of a decoder and the findings of the probes, so that a start packs and
probes nothing.

An entry holds every linear map in its native form with its row rule, the other weights as they are, the low-precision
draft weights and the choice of attention. It is stored only where all of them are native kernels.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orthrus import bit_fields, k_quants, quantization, tensor_cache
from orthrus.backends import select
from orthrus.backends.interface import AttentionChoice, ExecutableLinear, RowRule
from orthrus.backends.native import kernels as native_kernels
from orthrus.backends.native import linears, packing, state
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.select import DraftWeights
from orthrus.file_cache import processor_name
from orthrus.model.decoder import Decoder
from orthrus.model.mlp import MLP
from orthrus.runner.runner import Runner
from orthrus.tensor_cache import Entry

SOURCES = (bit_fields, quantization, k_quants, native_kernels, linears, packing, state, select)
"""The modules that decide what an entry holds, with this one: an entry is that of their text."""
DRAFT = "draft "
"""Stands before the name of the map whose low-precision copy an entry holds."""


def key(identity: str, decoder: Decoder, kernels: NativeKernels, *, int8: bool | None, copies: bool) -> str:
    """The name of an entry: a hash of the weights, the options, the build of the kernels and the processor."""
    texts = [Path(str(module.__file__)).read_bytes() for module in SOURCES] + [Path(__file__).read_bytes()]
    parts = (
        texts, identity, decoder.config, str(decoder.dtype), int8, copies, kernels.build,
        processor_name(),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def save(name: str, runner: Runner) -> bool:
    """Store a runner. Returns whether it was stored: see the docstring of the module, and `tensor_cache.save`."""
    decoder, attention = runner.decoder, runner.attention
    maps: dict[str, nn.Module] = {**decoder.linears(), **_draft_copies(decoder, runner.draft_weights)}
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for own, linear in maps.items():
        found = state.state_of(linear)
        if found is None or not attention.ragged:
            return False
        values[own] = found[0]
        tensors |= {f"{own}/{attribute}": tensor for attribute, tensor in found[1].items()}
    tensors |= {f"/{own}": parameter for own, parameter in decoder.named_parameters()}
    rules = asdict(attention.rule), attention.key_multiple, attention.single_row
    return tensor_cache.save(name, Entry({"linears": values, "attention": rules}, tensors))


def restore(name: str, decoder: Decoder, kernels: NativeKernels) -> Runner | None:
    """The runner of an entry, in a decoder without weights; None where there is none, or that of another version."""
    entry = tensor_cache.load(name)
    if entry is None:
        return None
    tensors: dict[str, dict[str, Tensor]] = {}
    for stored, tensor in entry.tensors.items():
        own, _, attribute = stored.rpartition("/")
        tensors.setdefault(own, {})[attribute] = tensor
    for own, tensor in tensors.pop("").items():
        _replace(decoder, own, nn.Parameter(tensor, requires_grad=False))
    plain = decoder.linears()
    shapes = {
        **plain,
        **{DRAFT + own: linear for own, linear in plain.items()},
        DRAFT + "head": decoder.drafting_shape(),
    }
    made = {
        own: state.restored((values, tensors[own]), shapes[own], kernels.kernel_of)
        for own, values in entry.values["linears"].items()
    }
    for own in plain:
        _replace(decoder, own, made[own])
    rule, key_multiple, single_row = entry.values["attention"]
    attention = AttentionChoice(select.masked(kernels), RowRule(**rule), key_multiple, single_row, ragged=True)
    mlps = [[made[DRAFT + own] for own in names if DRAFT + own in made] for names in _mlps(decoder)]
    pairs = tuple((copies[0], copies[1]) if copies else None for copies in mlps)
    return Runner(decoder, kernels, attention, DraftWeights(pairs if any(pairs) else (), made.get(DRAFT + "head")))


def _draft_copies(decoder: Decoder, drafts: DraftWeights) -> dict[str, ExecutableLinear]:
    """Low-precision copies by name."""
    copies = {DRAFT + "head": drafts.head} if drafts.head else {}
    for names, pair in zip(_mlps(decoder), drafts.mlps, strict=False):
        copies |= {DRAFT + own: linear for own, linear in zip(names, pair or (), strict=False)}
    return copies


def _mlps(decoder: Decoder) -> list[tuple[str, ...]]:
    """The names of gate_up and down of each layer; none for a mixture of experts."""
    names = {linear: name for name, linear in decoder.linears().items()}
    mlps = [layer.mlp for layer in decoder.decoder_layers]
    return [(names[mlp.gate_up], names[mlp.down]) if isinstance(mlp, MLP) else () for mlp in mlps]


def _replace(decoder: Decoder, name: str, part: nn.Module | nn.Parameter) -> None:
    parent, _, own = name.rpartition(".")
    setattr(decoder.get_submodule(parent), own, part)
