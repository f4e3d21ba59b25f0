"""Bytes of K-quants, which the `gguf` library can read but not write: random ones, and weights rounded to them."""

from __future__ import annotations

import gguf
import numpy as np

BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
TOP = {"Q4_K": 15, "Q5_K": 31}


def random(rng, kind, outputs, inputs):
    """Any valid bytes [outputs, inputs / 256 * bytes]: codes and scales of all values; units of both signs, subnormal
    and zero ones among them."""
    raw = rng.integers(0, 256, (outputs, inputs // 256, BYTES[kind]), dtype=np.uint8)
    for at in (208,) if kind == "Q6_K" else (0, 2):
        units = 2.0 ** rng.integers(-26, 4, raw.shape[:2]) * rng.standard_normal(raw.shape[:2])
        raw[..., at : at + 2] = units.astype(np.float16)[..., None].view(np.uint8)
    return raw.reshape(outputs, -1)


def quantize(values, kind):
    """Weights [outputs, inputs] rounded to a GGML type, K-quants to the nearest code of simple scales."""
    if kind.name not in BYTES:
        return gguf.quantize(values, kind)
    blocks = values.reshape(len(values), -1, 256).astype(np.float32)
    raw = _q6_k(blocks) if kind.name == "Q6_K" else _with_minima(blocks, kind.name)
    return raw.reshape(len(values), -1)


def _q6_k(blocks):
    groups = blocks.reshape(*blocks.shape[:2], 16, 16)
    scales = np.abs(groups).max(-1) / 31
    d, scales = _in_units(scales, 127)
    codes = _divided(groups, d, scales).round().clip(-32, 31).astype(np.int8) + 32
    rows = codes.astype(np.uint8).reshape(*blocks.shape[:2], 2, 4, 32)
    low = rows[..., :2, :] & 15 | (rows[..., 2:, :] & 15) << 4
    high = (rows >> 4 << np.arange(0, 8, 2, dtype=np.uint8)[:, None]).sum(-2, dtype=np.uint8)
    parts = [low, high, scales.astype(np.int8).view(np.uint8), d[..., None].view(np.uint8)]
    return np.concatenate([part.reshape(*blocks.shape[:2], -1) for part in parts], axis=-1)


def _with_minima(blocks, kind):
    groups = blocks.reshape(*blocks.shape[:2], 8, 32)
    mins = -np.minimum(groups.min(-1), 0)
    d, scales = _in_units((groups.max(-1) + mins) / TOP[kind], 63)
    dmin, mins = _in_units(mins, 63)
    raised = groups + (dmin.astype(np.float32)[..., None] * mins)[..., None]
    codes = _divided(raised, d, scales).round().clip(0, TOP[kind]).astype(np.uint8)
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    high = [
        s[..., :4] | s[..., 4:] >> 4 << 6,
        m[..., :4] | m[..., 4:] >> 4 << 6,
        s[..., 4:] & 15 | (m[..., 4:] & 15) << 4,
    ]
    pairs = codes.reshape(*blocks.shape[:2], 4, 2, 32)
    fifth = (codes >> 4 << np.arange(8, dtype=np.uint8)[:, None]).sum(-2, dtype=np.uint8)
    parts = [
        np.stack((d, dmin), axis=-1).view(np.uint8), *high, *([fifth] if kind == "Q5_K" else []),
        pairs[..., 0, :] & 15 | (pairs[..., 1, :] & 15) << 4,
    ]  # fmt: skip
    return np.concatenate([part.reshape(*blocks.shape[:2], -1) for part in parts], axis=-1)


def _in_units(scales, top):
    """The fp16 unit of a super-block, and its scales as integers up to `top`."""
    d = (scales.max(-1) / top).astype(np.float16)
    return d, (scales / np.maximum(d.astype(np.float32), 1e-12)[..., None]).round().clip(0, top)


def _divided(groups, d, scales):
    return groups / np.maximum(d.astype(np.float32)[..., None] * scales, 1e-12)[..., None]
