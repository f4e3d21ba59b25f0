"""The one place that selects kernels: for a device, for every linear map, and for attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from orthrus import heap
from orthrus.backends.interface import (
    ATTENTION_FEATURES,
    MAX_ROWS,
    MIN_ATTENDED,
    Attend,
    AttentionChoice,
    ExecutableLinear,
    Kernels,
    LinearForm,
    RowRule,
)
from orthrus.backends.invariance import AttentionProbe, find_row_rule
from orthrus.backends.linears import TorchLinear
from orthrus.backends.native import build, compiler
from orthrus.backends.native.kernels import NativeKernels
from orthrus.backends.torch import TorchKernels, attend_flash, attend_in_blocks
from orthrus.batch import AttentionMetadata
from orthrus.config import KEY_BLOCK, PAGE
from orthrus.decoder_config import DecoderConfig
from orthrus.model.decoder import Decoder
from orthrus.model.linear import Linear
from orthrus.model.mlp import MLP

LinearForms = Callable[[Linear], Iterator[LinearForm]]
"""Gives the forms of a linear map to try, best first."""
MLPCopies = tuple[ExecutableLinear, ExecutableLinear]
"""gate_up and down of one layer."""


def fastest(dtype: torch.dtype, device: torch.device, cache_directory: Path) -> Kernels:
    """The fastest kernels of a device. If only torch's are available, `notice` states why."""
    if device.type == "cpu":
        try:
            return NativeKernels(build.library(dtype, cache_directory))
        except compiler.UnavailableError as error:
            return TorchKernels(
                f"{error}. Passes run on torch's kernels: the same tokens, several times slower", error.output
            )
    if device.type == "cuda":
        # sums of partial results in bf16 lose bits, and whether cuBLAS splits a sum depends on the number of rows
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        with suppress(ImportError):  # torch comes with Triton where it comes with CUDA
            from orthrus.backends.triton.kernels import TritonKernels

            return TritonKernels()
    return TorchKernels()


@dataclass(frozen=True)
class DraftWeights:
    """Weights of passes that only draft: low-precision copies of the MLP of each layer and of the head, which computes
    the draft vocabulary alone where there is one. Where a copy is missing, the exact weights are used."""

    mlps: tuple[MLPCopies | None, ...] = ()
    head: ExecutableLinear | None = None

    @property
    def linears(self) -> list[ExecutableLinear]:
        """All linear maps of the copies."""
        maps = [linear for mlp in self.mlps if mlp for linear in mlp]
        return [*maps, self.head] if self.head else maps


def by_int8(plain: Linear, kernels: Kernels, int8: bool | None) -> bool:
    """Whether a map is multiplied by int8 activations. int8: True or False for all maps, or None for those whose codes,
    as their file stores them, the kernels multiply fast."""
    return plain.quantizable and (kernels.multiplies_codes(plain) if int8 is None else int8)


def choose_draft_weights(
    decoder: Decoder, kernels: Kernels, *, int8: bool | None = False, low_precision: bool = False
) -> DraftWeights:
    """The weights of passes that only draft; the options are those of `low_precision_drafts`. The head of a draft
    vocabulary is made in any case."""
    weights = DraftWeights()
    if low_precision:
        weights = low_precision_drafts(decoder, kernels, int8=int8)
    if weights.head is None and decoder.draft_tokens is not None:
        head = decoder.drafting_head()
        forms: LinearForms = kernels.quantised if by_int8(head, kernels, int8) else kernels.packed
        weights = replace(weights, head=_first_exact(head, forms, decoder.device))
    return weights


def low_precision_drafts(decoder: Decoder, kernels: Kernels, *, int8: bool | None) -> DraftWeights:
    """Replace the maps of the diffusion view by low-precision forms if the kernels have them, and make low-precision
    copies of MLPs (experts excepted) and head that are not multiplied by int8 activations themselves (`by_int8`).
    Drafts need not be exact: no output token depends on them."""
    if decoder.diffusion is None:
        return DraftWeights()
    mlps: list[MLPCopies | None] = []
    plain_head = decoder.drafting_head()
    head = None if by_int8(plain_head, kernels, int8) else kernels.low_precision(plain_head)
    for layer in decoder.decoder_layers:
        assert layer.diffusion is not None
        layer.diffusion.qkv = kernels.low_precision(layer.diffusion.qkv, view=True) or layer.diffusion.qkv
        layer.diffusion.o = kernels.low_precision(layer.diffusion.o, view=True) or layer.diffusion.o
        maps = (layer.mlp.gate_up, layer.mlp.down) if isinstance(layer.mlp, MLP) else ()
        maps = () if any(by_int8(linear, kernels, int8) for linear in maps) else maps
        made = [kernels.low_precision(linear) for linear in maps]
        mlps.append((made[0], made[1]) if made and made[0] and made[1] else None)
    return DraftWeights(tuple(mlps), head)


def pack_linears(decoder: Decoder, kernels: Kernels, *, int8: bool | None = False) -> None:
    """Replace every plain `Linear` by the fastest form, or fastest int8 form (`by_int8`), that keeps its bits on this
    machine.

    Each distinct shape is probed once, on random values of its own dtype and device. The map with the most outputs
    comes first: to probe a head on kernels of torch takes much memory for its results, which the packed weights of the
    others take later.
    """
    chosen: dict[tuple[object, ...], tuple[type[ExecutableLinear], RowRule]] = {}
    plains = [
        (parent, name, plain)
        for parent in decoder.modules()
        for name, plain in parent.named_children()
        if isinstance(plain, Linear) and not isinstance(plain, ExecutableLinear)
    ]
    for parent, name, plain in sorted(plains, key=lambda child: -child[2].shape[0]):
        forms: LinearForms = kernels.quantised if by_int8(plain, kernels, int8) else kernels.packed
        quantized = plain.group_quantized
        key = (plain.dtype, *plain.shape, plain.bias is None, quantized and quantized.type, plain.quantizable)
        if key in chosen:
            form, rule = chosen[key]
            linear = next((made for made in _forms(plain, forms) if type(made) is form), None) or TorchLinear(plain)
            linear.rule = rule
        else:
            heap.trim()
            linear = _first_exact(plain, forms, decoder.device)
            chosen[key] = type(linear), linear.rule
        setattr(parent, name, linear)
    heap.trim()


def _forms(plain: Linear, forms: LinearForms) -> Iterator[ExecutableLinear]:
    """The forms of a linear map that are available on this machine, best first."""
    for form in forms(plain):
        try:
            made = form()
        except RuntimeError:  # not available on this processor or in this build of torch
            continue
        made.rule = RowRule(1, MAX_ROWS, exact=False)
        yield made


def _first_exact(plain: Linear, forms: LinearForms, device: torch.device) -> ExecutableLinear:
    """The first form whose bits hold, with its rule; else torch's, with the best guess of its rule."""
    generator = torch.Generator().manual_seed(0)
    rows_NI = torch.randn(MAX_ROWS, plain.shape[1], generator=generator).to(device, plain.dtype)
    for made in _forms(plain, forms):
        if not made.probed:
            made.rule = RowRule(1, MAX_ROWS)
            return made
        try:
            made.rule = find_row_rule(made.probe, rows_NI, made.min_multiple)
        except RuntimeError:  # the form was made, but its kernel does not run
            continue
        if made.rule.exact:
            return made
    fallback = TorchLinear(plain)
    fallback.rule = find_row_rule(fallback, rows_NI)
    return fallback


def choose_attention(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> AttentionChoice:
    """The fastest attention that keeps its bits here and has the features of the model; else the reference, with the
    best guess of its rule."""
    probe = AttentionProbe(config, dtype, device)
    lacking = set(ATTENTION_FEATURES).intersection(kernels.lacking(config))
    if kernels.supports_ragged_attention(config.head_dim) and not lacking:
        attend = masked(kernels)
        try:
            rule = probe.row_rule(attend, 1)
            if rule.exact and rule.multiple == 1:
                return AttentionChoice(attend, rule, probe.key_multiple(attend), single_row=True, ragged=True)
            kernels.notice = f"the attention of {kernels.name} does not keep its bits here: torch's runs"
        except RuntimeError as error:
            kernels.notice = f"{error}: torch's attention runs"
    if device.type == "cpu" and config.attention_soft_cap is None and not config.attention_sinks:
        try:
            choice = AttentionChoice(
                attend_flash,
                probe.row_rule(attend_flash, MIN_ATTENDED),
                probe.key_multiple(attend_flash),
                probe.single_row(attend_flash),
            )
        except (AttributeError, RuntimeError):  # this build of torch has no such kernel, or not for this head size
            return AttentionChoice(attend_in_blocks, probe.row_rule(attend_in_blocks), KEY_BLOCK)
        if choice.rule.exact:
            return choice
    return AttentionChoice(attend_in_blocks, probe.row_rule(attend_in_blocks), KEY_BLOCK)


def masked(kernels: Kernels) -> Attend:
    """`Kernels.attend` as a function that takes a mask, for rows that attend to consecutive keys of a sequence."""

    def native_attention(
        q_BRHE: Tensor,
        k_BGSE: Tensor,
        v_BGSE: Tensor,
        bias_B1RS: Tensor,
        scale: float | None = None,
        soft_cap: float | None = None,
        sinks_H: Tensor | None = None,
    ) -> Tensor:
        assert sinks_H is None
        B, R, H, E = q_BRHE.shape
        attended = (bias_B1RS == 0).expand(B, 1, R, -1).flatten(0, 2)
        starts = attended.int().argmax(dim=-1)
        kv_lens = starts + attended.sum(dim=-1)
        segments = torch.tensor([[b * R, R, b, 0, 0] for b in range(B)], device=kv_lens.device)
        keys, values = (F.pad(x, (0, 0, 0, -x.shape[2] % PAGE)).transpose(0, 1).flatten(1, 2) for x in (k_BGSE, v_BGSE))
        tables = torch.arange(keys.shape[1] // PAGE, device=kv_lens.device).view(B, -1)
        kv_starts = starts if bool(starts.any()) else None
        metadata = AttentionMetadata(segments, kv_lens, tables, R, kv_starts, scale, soft_cap)
        out = kernels.attend(q_BRHE.reshape(B * R, H, E), keys, values, metadata)
        return out.view(B, R, H * E)

    return native_attention
