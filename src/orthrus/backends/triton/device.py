"""Device code in Triton: see `kernels.py`. Capital letters are what a kernel is compiled for.

Keys go by in chunks whose borders depend on the position alone, merged in order; what a row does not see weighs zero.
"""

import triton
import triton.language as tl


@triton.jit
def norm_row(x, delta, weight, out, D, eps, SIZE: tl.constexpr, ADD: tl.constexpr):
    """A row's norm, of the sum with `delta` where that is to be added."""
    at, d = tl.program_id(0) * D, tl.arange(0, SIZE)
    there = d < D
    row = tl.load(x + at + d, there, 0.0)
    if ADD:
        row = (row.to(tl.float32) + tl.load(delta + at + d, there, 0.0).to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + at + d, row, there)
    row = row.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(row * row) / D + eps)
    scaled = row * inverse * tl.load(weight + d, there, 0.0).to(tl.float32)
    tl.store(out + at + d, scaled.to(out.dtype.element_ty), there)


@triton.jit
def finite(x, LIMIT: tl.constexpr):
    """x within the limit of the cache; NaN becomes a bound too."""
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit
def place_head(
    qkv, q_norm, k_norm, cos, sin, places, q, keys, values, N, H, G, per_sequence, per_head, eps,
    E: tl.constexpr, NORM: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """One head of one row: rotated to its row of q or its place in the cache, or copied there."""
    n, head, e = tl.program_id(0), tl.program_id(1), tl.arange(0, E)
    half: tl.constexpr = E // 2
    other = (e + half) % E
    x = qkv + (n * (H + 2 * G) + head) * E
    row, partner = tl.load(x + e).to(tl.float32), tl.load(x + other).to(tl.float32)
    slot = tl.load(places + N + n) * per_sequence + tl.load(places + 2 * N + n) * E
    if head >= H + G:
        tl.store(values + slot + (head - H - G) * per_head + e, finite(row, LIMIT).to(values.dtype.element_ty))
    else:
        if NORM:
            weight = q_norm if head < H else k_norm
            inverse = 1.0 / tl.sqrt(tl.sum(row * row) / E + eps)
            row = row * inverse * tl.load(weight + e).to(tl.float32)
            partner = partner * inverse * tl.load(weight + other).to(tl.float32)
        turned = row * tl.load(cos + n * E + e) + partner * tl.load(sin + n * E + e)
        if head < H:
            tl.store(q + (tl.load(places + n) * H + head) * E + e, turned.to(q.dtype.element_ty))
        else:
            tl.store(keys + slot + (head - H) * per_head + e, finite(turned, LIMIT).to(keys.dtype.element_ty))


@triton.jit
def gate_part(x, out, size, BLOCK: tl.constexpr):
    """A part of a row's gated activations."""
    n, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = i < size
    gate = tl.load(x + 2 * n * size + i, there, 0.0).to(tl.float32)
    up = tl.load(x + (2 * n + 1) * size + i, there, 0.0).to(tl.float32)
    tl.store(out + n * size + i, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), there)


@triton.jit
def safe(top):
    """What to subtract: a row that has seen nothing yet has no largest score."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def over_keys(q, keys, values, first, last, visible, scale, E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Sums, largest scores and totals of query rows over the keys `first` to `last`, of which each sees those before
    its `visible`."""
    e = tl.arange(0, E)
    top, total = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, E), tl.float32)
    for start in range(first, last, KEYS):
        j = start + tl.arange(0, KEYS)
        k = tl.load(keys + j[None, :] * E + e[:, None], (j < last)[None, :], 0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(j[None, :] < tl.minimum(visible, last)[:, None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights, keep = tl.exp(scores - safe(higher)[:, None]), tl.exp(top - safe(higher))
        v = tl.load(values + j[:, None] * E + e[None, :], (j < last)[:, None], 0.0)
        total = total * keep + tl.sum(weights, 1)
        sums = sums * keep[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
    return sums, top, total


@triton.jit
def attend_run(
    q, keys, values, runs, seen, out, all_sums, all_tops, all_totals, tiles, H, per_sequence, per_head, scale,
    GROUP: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One tile of one run's rows for one head of keys: over one chunk of keys, or over all of them in order."""
    run, tile = runs + tl.program_id(0) // tiles * 5, tl.program_id(0) % tiles
    g, chunk, lane, e = tl.program_id(1), tl.program_id(2), tl.arange(0, QUERIES), tl.arange(0, E)
    row = tile * ROWS + lane // GROUP
    there = (row < tl.load(run + 1)) & (lane < ROWS * GROUP)
    query = (tl.load(run) + row) * H + g * GROUP + lane % GROUP
    rows_q = tl.load(q + query[:, None] * E + e[None, :], there[:, None], 0.0)
    visible = tl.load(seen + tl.load(run) + row, there, 0).to(tl.int32)
    at = tl.load(run + 2) * per_sequence + g * per_head
    begin, end, longest = tl.load(run + 3).to(tl.int32), tl.load(run + 4).to(tl.int32), tl.max(visible, 0)
    own = tl.where(there, end, 0)
    if SPLIT:
        last_chunk = tl.num_programs(2) - 1
        if chunk == last_chunk:
            sums, top, total = over_keys(rows_q, keys + at, values + at, begin, end, own, scale, E, QUERIES, KEYS)
        else:
            first = chunk * CHUNK
            last = tl.minimum(first + CHUNK, longest)
            sums, top, total = over_keys(rows_q, keys + at, values + at, first, last, visible, scale, E, QUERIES, KEYS)
        place = query * tl.num_programs(2) + chunk
        tl.store(all_sums + place[:, None] * E + e[None, :], sums, there[:, None])
        tl.store(all_tops + place, top, there)
        tl.store(all_totals + place, total, there)
    else:
        sums, top, total = over_keys(rows_q, keys + at, values + at, 0, 0, visible, scale, E, QUERIES, KEYS)
        for first in range(0, longest, CHUNK):
            last = tl.minimum(first + CHUNK, longest)
            more, high, added = over_keys(rows_q, keys + at, values + at, first, last, visible, scale, E, QUERIES, KEYS)
            sums, top, total = merged(sums, top[:, None], total[:, None], more, high[:, None], added[:, None])
            top, total = tl.reshape(top, (QUERIES,)), tl.reshape(total, (QUERIES,))
        more, high, added = over_keys(rows_q, keys + at, values + at, begin, end, own, scale, E, QUERIES, KEYS)
        sums, top, total = merged(sums, top[:, None], total[:, None], more, high[:, None], added[:, None])
        total = tl.where(total > 0, total, 1.0)  # lanes without a row have seen nothing
        result = (sums / total).to(out.dtype.element_ty)
        tl.store(out + query[:, None] * E + e[None, :], result, there[:, None])


@triton.jit
def merged(sums, top, total, more, high, added):
    """Two sets of keys as one; one of which nothing is seen changes no bit."""
    higher = tl.maximum(top, high)
    keep, add = tl.exp(top - safe(higher)), tl.exp(high - safe(higher))
    return sums * keep + more * add, higher, total * keep + added * add


@triton.jit
def merge_row(all_sums, all_tops, all_totals, out, count, E: tl.constexpr):
    """The chunks of one head of one row, in order."""
    n, e = tl.program_id(0), tl.arange(0, E)
    at = n * count
    sums, top, total = tl.zeros((E,), tl.float32), tl.full((1,), float("-inf"), tl.float32), tl.zeros((1,), tl.float32)
    for chunk in range(count):
        more = tl.load(all_sums + (at + chunk) * E + e)
        high, added = (
            tl.load(all_tops + at + chunk + tl.arange(0, 1)),
            tl.load(all_totals + at + chunk + tl.arange(0, 1)),
        )
        sums, top, total = merged(sums, top, total, more, high, added)
    tl.store(out + n * E + e, (sums / total).to(out.dtype.element_ty))
