"""Make a runner from plain weights: choose kernels for the device, and low-precision draft weights if memory allows."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from orthrus import heap
from orthrus.backends import select
from orthrus.backends.linears import GroupedLinear, Int8Linear
from orthrus.backends.native.kernels import NativeKernels
from orthrus.file_cache import cache_directory
from orthrus.model.decoder import Decoder
from orthrus.runner import packed
from orthrus.runner.memory import available_bytes
from orthrus.runner.runner import Runner

SLOW_INT8 = (
    "there are no fast int8 kernels here (they need a C compiler): the reference implementation runs,"
    " several times slower than bfloat16. Leave --quantize int8 (quantize=) out for speed."
)


def prepare(decoder: Decoder, *, int8: bool | None = False, low_precision_drafts: bool = True) -> Runner:
    """A runner with the fastest kernels of the decoder's device. Packs the weights in place, which cannot be undone.

    int8: which maps are multiplied by int8 activations; see `select.by_int8`.
    """
    kernels = select.fastest(decoder.dtype, decoder.device, cache_directory())
    return Runner.prepare(
        decoder, kernels, int8=int8, low_precision=low_precision_drafts and _memory_for_copies(decoder)
    )


def prepare_unread(
    decoder: Decoder,
    read: Callable[[], None],
    identity: str,
    *,
    int8: bool | None,
    low_precision_drafts: bool,
    cache: bool,
) -> Runner:
    """The same for a decoder whose weights `read` reads into it. A runner of the same weights (`identity`), options,
    kernels and processor is taken from the cache, or stored there; `cache` = False does neither."""
    kernels = select.fastest(decoder.dtype, decoder.device, cache_directory())
    copies = low_precision_drafts and _memory_for_copies(decoder)
    name = None
    if cache and isinstance(kernels, NativeKernels):
        name = packed.key(identity, decoder, kernels, int8=int8, copies=copies)
        restored = packed.restore(name, decoder, kernels)
        if restored is not None:
            heap.trim()  # the weights that the entry replaced
            return restored
    read()
    runner = Runner.prepare(decoder, kernels, int8=int8, low_precision=copies)
    if name is not None:
        packed.save(name, runner)
    heap.trim()
    return runner


def inference_copy(decoder: Decoder) -> Runner:
    """A runner of a copy of the decoder, whose own plain weights do not change."""
    copy = Decoder(decoder.config, decoder.diffusion, decoder.dtype, decoder.device)
    if decoder.draft_head is not None:
        copy.set_draft_head(decoder.draft_head.units)
    values, copies = decoder.state_dict(), copy.linears()
    for name, linear in decoder.linears().items():
        values[f"{name}.weight"], copies[name].group_quantized = linear.weight.detach(), linear.group_quantized
    copy.load_state_dict({name: values[name] for name in copy.state_dict()})  # of low-rank maps the merged weights
    return prepare(copy)


def warnings(runner: Runner) -> list[str]:
    """Warnings about the speed of a runner, for its user."""
    slow = any(type(linear) in (Int8Linear, GroupedLinear) for linear in runner.decoder.linears().values())
    return [SLOW_INT8] if slow else []


def _memory_for_copies(decoder: Decoder) -> bool:
    """Whether one byte per weight takes at most half of the available memory; True if that is not known."""
    available = available_bytes(decoder.device)
    return available is None or sum(prod(linear.shape) for linear in decoder.linears().values()) <= available // 2
