"""Device code in Triton: see `kernels.py`. Parameters in capitals of type `tl.constexpr` are compile-time constants.

Attention reads keys in chunks whose borders depend on the position alone, and merges the chunks in order. A key that a
row does not attend to has weight zero.

Sizes and integer tensors that differ from pass to pass are not specialised on: a variant per alignment and per size
would be compiled during decoding, and its code might round differently.
"""

import triton
import triton.language as tl


@triton.jit
def norm_row(x, delta, weight, out, D, eps, SIZE: tl.constexpr, ADD: tl.constexpr):
    """RMS norm of one row; with ADD, of the row plus `delta`, which is also stored to x."""
    at, d = tl.program_id(0) * D, tl.arange(0, SIZE)
    valid = d < D
    row = tl.load(x + at + d, valid, 0.0)
    if ADD:
        row = (row.to(tl.float32) + tl.load(delta + at + d, valid, 0.0).to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + at + d, row, valid)
    row = row.to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(row * row) / D + eps)
    scaled = row * inverse * tl.load(weight + d, valid, 0.0).to(tl.float32)
    tl.store(out + at + d, scaled.to(out.dtype.element_ty), valid)


@triton.jit
def clamp(x, LIMIT: tl.constexpr):
    """x clamped to the limit of the cache; NaN becomes a bound too."""
    return tl.minimum(tl.maximum(x, -LIMIT), LIMIT)


@triton.jit(do_not_specialize=["mapping", "N"])
def rope_and_cache_write_head(
    qkv, q_norm, k_norm, cos, sin, mapping, q, keys, values, N, H, G, per_head, eps,
    E: tl.constexpr, NORM: tl.constexpr, LIMIT: tl.constexpr,
):  # fmt: skip
    """One head of one row: rotate q and k, and write q to its row of queries, k and v to their slot of the cache."""
    n, head, e = tl.program_id(0), tl.program_id(1), tl.arange(0, E)
    half: tl.constexpr = E // 2
    other = (e + half) % E
    x = qkv + (n * (H + 2 * G) + head) * E
    row, partner = tl.load(x + e).to(tl.float32), tl.load(x + other).to(tl.float32)
    slot = tl.load(mapping + N + n) * E
    if head >= H + G:
        tl.store(
            values + slot + (head - H - G).to(tl.int64) * per_head + e, clamp(row, LIMIT).to(values.dtype.element_ty)
        )
    else:
        if NORM:
            weight = q_norm if head < H else k_norm
            inverse = 1.0 / tl.sqrt(tl.sum(row * row) / E + eps)
            row = row * inverse * tl.load(weight + e).to(tl.float32)
            partner = partner * inverse * tl.load(weight + other).to(tl.float32)
        rotated = row * tl.load(cos + n * E + e) + partner * tl.load(sin + n * E + e)
        if head < H:
            tl.store(q + (tl.load(mapping + n) * H + head) * E + e, rotated.to(q.dtype.element_ty))
        else:
            tl.store(
                keys + slot + (head - H).to(tl.int64) * per_head + e, clamp(rotated, LIMIT).to(keys.dtype.element_ty)
            )


@triton.jit
def silu_mul(x, out, size, BLOCK: tl.constexpr):
    """silu(gate) * up for one block of one row."""
    n, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = i < size
    gate = tl.load(x + 2 * n * size + i, valid, 0.0).to(tl.float32)
    up = tl.load(x + (2 * n + 1) * size + i, valid, 0.0).to(tl.float32)
    tl.store(out + n * size + i, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), valid)


@triton.jit
def finite_max(top):
    """The maximum to subtract from scores: 0 for a row that has no score yet."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def attend_chunk(
    q, keys, values, pages, path, path_start, first, last, kv_lens, scale, E: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """Online softmax of query rows over the keys `first` to `last`: weighted sums, maxima and totals. Each row attends
    to the keys before its `kv_lens`. The keys of one step lie in one page. With TREE, those from the position
    `path_start` on are at the places that `path` lists."""
    e = tl.arange(0, E)
    top, total = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, E), tl.float32)
    for start in range(first, last, KEYS):
        j = start + tl.arange(0, KEYS)
        if TREE:
            on_path = (j >= path_start) & (j < last)
            place = tl.where(on_path, tl.load(path + j - path_start, on_path, 0), j)
            slot = tl.load(pages + place // PAGE) * PAGE + place % PAGE
        else:
            slot = (tl.load(pages + start // PAGE) - start // PAGE) * PAGE + j
        k = tl.load(keys + slot[None, :] * E + e[:, None], (j < last)[None, :], 0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        scores = tl.where(j[None, :] < tl.minimum(kv_lens, last)[:, None], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights, keep = tl.exp(scores - finite_max(higher)[:, None]), tl.exp(top - finite_max(higher))
        v = tl.load(values + slot[:, None] * E + e[None, :], (j < last)[:, None], 0.0)
        total = total * keep + tl.sum(weights, 1)
        sums = sums * keep[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = higher
    return sums, top, total


@triton.jit(
    do_not_specialize=["segments", "all_kv_lens", "tables", "columns", "row_paths", "paths", "path_columns", "tiles"]
)
def attend_segment(
    q, keys, values, segments, all_kv_lens, tables, columns, row_paths, paths, path_columns, out, all_sums, all_tops,
    all_totals, tiles, H, per_head, scale, GROUP: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr,
    TREE: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one segment and one key/value head: over one chunk of keys, or over all chunks in order. With
    TREE, a tile is one row."""
    segment, tile = segments + tl.program_id(0) // tiles * 5, tl.program_id(0) % tiles
    g, chunk, lane, e = tl.program_id(1), tl.program_id(2), tl.arange(0, QUERIES), tl.arange(0, E)
    row = tile * ROWS + lane // GROUP
    valid = (row < tl.load(segment + 1)) & (lane < ROWS * GROUP)
    query = (tl.load(segment) + row) * H + g * GROUP + lane % GROUP
    rows_q = tl.load(q + query[:, None] * E + e[None, :], valid[:, None], 0.0)
    kv_lens = tl.load(all_kv_lens + tl.load(segment) + row, valid, 0).to(tl.int32)
    pages, per_group = tables + tl.load(segment + 2) * columns, g.to(tl.int64) * per_head
    k, v = keys + per_group, values + per_group
    begin, end, longest = tl.load(segment + 3).to(tl.int32), tl.load(segment + 4).to(tl.int32), tl.max(kv_lens, 0)
    own, path, path_start = tl.where(valid, end, 0), paths, longest
    if TREE:
        number = tl.load(row_paths + tl.load(segment) + tile, tile < tl.load(segment + 1), -1)
        path += tl.maximum(number, 0) * path_columns
        path_start = tl.where(number < 0, longest, tl.load(path).to(tl.int32))
        path += 1
    if SPLIT:
        last_chunk = tl.num_programs(2) - 1
        if chunk == last_chunk:
            sums, top, total = attend_chunk(
                rows_q, k, v, pages, path, path_start, begin, end, own, scale, E, QUERIES, KEYS, PAGE, False
            )
        else:
            first = chunk * CHUNK
            last = tl.minimum(first + CHUNK, longest)
            sums, top, total = attend_chunk(
                rows_q, k, v, pages, path, path_start, first, last, kv_lens, scale, E, QUERIES, KEYS, PAGE, TREE
            )
        place = query * tl.num_programs(2) + chunk
        tl.store(all_sums + place[:, None] * E + e[None, :], sums, valid[:, None])
        tl.store(all_tops + place, top, valid)
        tl.store(all_totals + place, total, valid)
    else:
        sums, top, total = attend_chunk(
            rows_q, k, v, pages, path, path_start, 0, 0, kv_lens, scale, E, QUERIES, KEYS, PAGE, False
        )
        for first in range(0, longest, CHUNK):
            last = tl.minimum(first + CHUNK, longest)
            more, high, added = attend_chunk(
                rows_q, k, v, pages, path, path_start, first, last, kv_lens, scale, E, QUERIES, KEYS, PAGE, TREE
            )
            sums, top, total = merge_chunks(sums, top[:, None], total[:, None], more, high[:, None], added[:, None])
            top, total = tl.reshape(top, (QUERIES,)), tl.reshape(total, (QUERIES,))
        more, high, added = attend_chunk(
            rows_q, k, v, pages, path, path_start, begin, end, own, scale, E, QUERIES, KEYS, PAGE, False
        )
        sums, top, total = merge_chunks(sums, top[:, None], total[:, None], more, high[:, None], added[:, None])
        total = tl.where(total > 0, total, 1.0)  # lanes without a row have no keys
        result = (sums / total).to(out.dtype.element_ty)
        tl.store(out + query[:, None] * E + e[None, :], result, valid[:, None])


@triton.jit
def merge_chunks(sums, top, total, more, high, added):
    """Merge the results of two sets of keys. A set to which the row does not attend changes no bit."""
    higher = tl.maximum(top, high)
    keep, add = tl.exp(top - finite_max(higher)), tl.exp(high - finite_max(higher))
    return sums * keep + more * add, higher, total * keep + added * add


@triton.jit(do_not_specialize=["count"])
def merge_row(all_sums, all_tops, all_totals, out, count, E: tl.constexpr):
    """Merge the chunks of one head of one row, in order."""
    n, e = tl.program_id(0).to(tl.int64), tl.arange(0, E)
    at = n * count
    sums, top, total = tl.zeros((E,), tl.float32), tl.full((1,), float("-inf"), tl.float32), tl.zeros((1,), tl.float32)
    for chunk in range(count):
        more = tl.load(all_sums + (at + chunk) * E + e)
        high, added = (
            tl.load(all_tops + at + chunk + tl.arange(0, 1)),
            tl.load(all_totals + at + chunk + tl.arange(0, 1)),
        )
        sums, top, total = merge_chunks(sums, top, total, more, high, added)
    tl.store(out + n * E + e, (sums / total).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["N"])
def linear_tile(
    x, weight, bias, out, N, outs, ins, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """One tile of y = x W^T + b. A row is summed in one order, whatever tile it is in. Tiles of the same weights are
    neighbours, so that they read them from memory once."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o, i = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS), tl.arange(0, INPUTS)
    x_at, weight_at = x + n[:, None] * ins + i[None, :], weight + o[None, :].to(tl.int64) * ins + i[:, None]
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, ins, INPUTS):
        left = ins - start
        x_tile = tl.load(x_at + start, (n[:, None] < N) & (i[None, :] < left), 0.0)
        weights = tl.load(weight_at + start, (o[None, :] < outs) & (i[:, None] < left), 0.0)
        sums = tl.dot(x_tile, weights, sums, input_precision="ieee")
    if BIAS:
        sums += tl.load(bias + o, o < outs, 0.0).to(tl.float32)[None, :]
    at = out + n[:, None].to(tl.int64) * outs + o[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), (n[:, None] < N) & (o[None, :] < outs))
