/* Attention of a few rows over the cache, read in place. Keys go by in blocks whose borders depend on the position alone,
 * merged in order by online softmax, and for keys that it does not see a row computes nothing, or, on tiles, adds zeros: so
 * neither its neighbours nor what lies behind its keys can move a bit of it. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && (!defined(BFLOAT16) || defined(__AVX512BF16__))
enum { KEYS = 256, SLICE = 64, SCORED = 8, SUMMED = 6 };

int has_attention(void) { return 1; }

#include "arrange.h"

/* scores[r][0..15] = q_r k_j for `rows` rows and `chunks` (constants where this is inlined) of 16 transposed keys. */
static inline __attribute__((always_inline)) void score(const VALUE *const *q, const int32_t *keys, int64_t words,
                                                        float *scores, const int rows, const int chunks) {
    __m512 sums[SCORED];
#pragma GCC unroll 16
    for (int n = 0; n < rows * chunks; n++) sums[n] = _mm512_setzero_ps();
    for (int64_t i = 0; i < words; i++)
#pragma GCC unroll 16
        for (int n = 0; n < rows * chunks; n++) {
            __m512i key = _mm512_loadu_si512(keys + 16 * (n / rows * words + i));
            __m512i value = _mm512_set1_epi32(((const int32_t *)q[n % rows])[i]);
#ifdef BFLOAT16
            sums[n] = _mm512_dpbf16_ps(sums[n], (__m512bh)value, (__m512bh)key);
#else
            sums[n] = _mm512_fmadd_ps(_mm512_castsi512_ps(value), _mm512_castsi512_ps(key), sums[n]);
#endif
        }
#pragma GCC unroll 16
    for (int n = 0; n < rows * chunks; n++)
        _mm512_storeu_ps(scores + n % rows * KEYS + 16 * (n / rows), sums[n]);
}

/* Scores of `seen` keys, times `scale`, become weights against the largest so far, those up to `padded` zeros; returns
 * their sum. */
static inline float weigh(float *weights, int64_t seen, int64_t padded, float scale, float *top) {
    __m512 most = _mm512_set1_ps(*top), sums = _mm512_setzero_ps();
    for (int64_t i = 0; i < seen; i += LANES) {
        __mmask16 there = (__mmask16)(seen - i < LANES ? (1 << (seen - i)) - 1 : 0xffff);
        __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(weights + i), _mm512_set1_ps(scale));
        _mm512_storeu_ps(weights + i, scaled);
        most = _mm512_mask_max_ps(most, there, most, scaled);
    }
    *top = _mm512_reduce_max_ps(most);
    most = _mm512_set1_ps(*top);
    for (int64_t i = 0; i < padded; i += LANES) {
        __mmask16 there = (__mmask16)(seen - i < LANES ? (seen > i ? (1 << (seen - i)) - 1 : 0) : 0xffff);
        __m512 weight = exponential_lanes(_mm512_sub_ps(_mm512_loadu_ps(weights + i), most));
        weight = _mm512_maskz_mov_ps(there, weight);
        _mm512_storeu_ps(weights + i, weight);
        sums = _mm512_add_ps(sums, weight);
    }
    return _mm512_reduce_add_ps(sums);
}

/* sums[r] = sums[r] * keep[r] + weights[r] v over `count` keys, one slice of 64 features; in bf16, by pairs of keys, of narrow
 * weights. */
static inline __attribute__((always_inline)) void gather(const float *weights, const float *keep, const VALUE *v,
                                                         int64_t count, int64_t size, float *sums, const int rows,
                                                         const int parts) {
    __m512 total[SUMMED][SLICE / LANES];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < parts; p++)
            total[r][p] = _mm512_mul_ps(_mm512_loadu_ps(sums + r * size + p * LANES), _mm512_set1_ps(keep[r]));
#ifdef BFLOAT16
    for (int64_t j = 0; j < count; j += 2, v += 2 * size) {
        __m512i pairs[2 + SLICE / LANES];
#pragma GCC unroll 16
        for (int p = 0; p < parts; p += 2) pair_features(v + p * LANES, count - j, size, parts > 1 ? ~0u : 0xffffu, pairs + p);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            __m512bh two = (__m512bh)everywhere(weights + r * KEYS + j / 2);
#pragma GCC unroll 16
            for (int p = 0; p < parts; p++) total[r][p] = _mm512_dpbf16_ps(total[r][p], two, (__m512bh)pairs[p]);
        }
    }
#else
    for (int64_t j = 0; j < count; j++, v += size)
#pragma GCC unroll 16
        for (int p = 0; p < parts; p++) {
            __m512 value = _mm512_loadu_ps(v + p * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                total[r][p] = _mm512_fmadd_ps(everywhere(weights + r * KEYS + j), value, total[r][p]);
        }
#endif
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < parts; p++) _mm512_storeu_ps(sums + r * size + p * LANES, total[r][p]);
}

/* What a thread keeps while it attends: for every query row, weights [KEYS], sums [size], top, total, keep, visible, and the
 * rows and keys in the order of the products. */
typedef struct {
    float *weights, *sums, *top, *total, *keep;
    int64_t *visible;
    const VALUE **q;
    VALUE *packed;
    int32_t *keys;
} Room;

#include "tile_attention.h"

/* All scores of a block, by tiles or by dot products; returns for how many keys there are any. */
static int64_t score_block(const Room *room, int64_t rows, int64_t chunks, int64_t size) {
    int64_t words = size * (int64_t)sizeof(VALUE) / 4;
#ifdef BY_TILES
    if (BY_TILES(size)) {
        score_tiles(room->packed, room->keys, room->weights, rows, chunks, size);
        return 16 * ((chunks + 1) / 2 * 2);
    }
#endif
    for (int64_t r = 0, taken; r < rows; r += taken) {
        int64_t left = rows - r; /* few sums at a time wait for one another */
        taken = left > 9 || left == 8 ? 8 : left >= 6 ? 6 : left == 5 ? 3 : left;
        for (int64_t c = 0; c < chunks; c += taken < 6 ? 2 : 1) { /* a chunk too many finds room, and is never looked at */
            const int32_t *keys = room->keys + 16 * c * words;
            float *scores = room->weights + r * KEYS + 16 * c;
            if (taken == 8) score(room->q + r, keys, words, scores, 8, 1);
            else if (taken == 6) score(room->q + r, keys, words, scores, 6, 1);
            else if (taken == 4) score(room->q + r, keys, words, scores, 4, 2);
            else if (taken == 3) score(room->q + r, keys, words, scores, 3, 2);
            else if (taken == 2) score(room->q + r, keys, words, scores, 2, 2);
            else score(room->q + r, keys, words, scores, 1, 2);
        }
    }
    return 16 * chunks;
}

/* All sums of a block of `count` keys, of whose `padded` weights those that a row does not see are zero. */
static void gather_block(const Room *room, int64_t rows, const VALUE *v, int64_t count, int64_t padded, int64_t size) {
#ifdef BFLOAT16
    for (int64_t r = 0; r < rows; r++) narrow(room->weights + r * KEYS, padded);
#endif
#ifdef BY_TILES
    if (BY_TILES(size)) {
        VALUE *pairs = (VALUE *)(room->keys + KEYS * size / 2);
        pair_values(v, pairs, count, padded, size);
        gather_tiles(room->weights, room->keep, pairs, room->sums, rows, padded, size);
        return;
    }
#endif
    (void)count, (void)padded; /* no further than each row sees */
    for (int64_t s = 0; s < size; s += SLICE) {
        int64_t whole = size - s >= SLICE;
        for (int64_t r = 0, taken; r < rows; r += taken) {
            taken = rows - r >= 6 ? 6 : rows - r >= 3 ? 3 : 1;
            int64_t most = 0;
            for (int64_t i = r; i < r + taken; i++) most = room->visible[i] > most ? room->visible[i] : most;
            const float *weights = room->weights + r * KEYS, *keep = room->keep + r;
            float *sums = room->sums + r * size + s;
            if (!whole) for (int64_t p = 0; p < size - s; p += LANES)
                for (int64_t i = 0; i < taken; i++) gather(weights + i * KEYS, keep + i, v + s + p, most, size, sums + i * size + p, 1, 1);
            else if (taken == 6) gather(weights, keep, v + s, most, size, sums, 6, 4);
            else if (taken == 3) gather(weights, keep, v + s, most, size, sums, 3, 4);
            else gather(weights, keep, v + s, most, size, sums, 1, 4);
        }
    }
}

/* One block of `count` keys, of which query row r sees the first visible[r]. */
static void attend_block(const Room *room, int64_t rows, const VALUE *k, const VALUE *v, int64_t count, int64_t size,
                         float scale) {
    int64_t words = size * (int64_t)sizeof(VALUE) / 4, chunks = (count + 15) / 16;
    for (int64_t c = 0; c < chunks; c++)
        for (int64_t i = 0; i < words; i += 16)
            transpose((const int32_t *)(k + 16 * c * size) + i, words, count - 16 * c, words - i,
                      room->keys + 16 * (c * words + i));
    int64_t padded = score_block(room, rows, chunks, size);
    for (int64_t r = 0; r < rows; r++) {
        float before = room->top[r], sum = weigh(room->weights + r * KEYS, room->visible[r], padded, scale, room->top + r);
        room->keep[r] = room->visible[r] ? expf(before - room->top[r]) : 1.0f;
        room->total[r] = room->total[r] * room->keep[r] + sum;
    }
    gather_block(room, rows, v, count, padded, size);
}

/* Rows of one run (they share sequence and own keys), one key/value head: q, out [.., H, size] at `stride` values a row. */
static void attend_run(const VALUE *q, VALUE *out, const int64_t *seen, int64_t rows, int64_t stride, int64_t group,
                       const VALUE *k, const VALUE *v, const int64_t *own, int64_t size, const Room *room) {
    int64_t all = rows * group, longest = 0;
    for (int64_t r = 0; r < all; r++) {
        room->q[r] = q + r / group * stride + r % group * size;
        room->top[r] = -INFINITY, room->total[r] = 0.0f;
        longest = seen[r / group] > longest ? seen[r / group] : longest;
    }
    memset(room->sums, 0, all * size * sizeof(float));
#ifdef BY_TILES
    if (BY_TILES(size)) pack_queries(room->q, room->packed, all, size);
#endif
    float scale = 1.0f / sqrtf((float)size);
    for (int64_t start = 0; start < longest; start += KEYS) {
        int64_t count = longest - start < KEYS ? longest - start : KEYS;
        for (int64_t r = 0; r < all; r++) {
            int64_t left = seen[r / group] - start;
            room->visible[r] = left < 0 ? 0 : left < count ? left : count;
        }
        attend_block(room, all, k + start * size, v + start * size, count, size, scale);
    }
    for (int64_t start = own[0]; start < own[1]; start += KEYS) {
        int64_t count = own[1] - start < KEYS ? own[1] - start : KEYS;
        for (int64_t r = 0; r < all; r++) room->visible[r] = count;
        attend_block(room, all, k + start * size, v + start * size, count, size, scale);
    }
    for (int64_t r = 0; r < all; r++) {
        VALUE *to = out + r / group * stride + r % group * size;
        for (int64_t i = 0; i < size; i += LANES)
            store_lanes(to + i, _mm512_div_ps(_mm512_loadu_ps(room->sums + r * size + i), _mm512_set1_ps(room->total[r])));
    }
}

enum { RUN = 5 };

/* Bytes of room for query rows of one head. */
static int64_t room_bytes(int64_t rows, int64_t size) {
    int64_t each = sizeof(float) * (KEYS + size + 3) + sizeof(VALUE) * size + sizeof(int64_t) + sizeof(VALUE *);
    return (rows + 15) / 16 * 16 * each + 4 * KEYS * size + 512;
}

static Room room_in(char *memory, int64_t rows, int64_t size) {
    Room room;
    rows = (rows + 15) / 16 * 16;
    room.keys = (int32_t *)memory, memory += 4 * KEYS * size;
    room.packed = (VALUE *)memory, memory += rows * size * (int64_t)sizeof(VALUE);
    room.q = (const VALUE **)memory, memory += rows * (int64_t)sizeof(VALUE *);
    room.visible = (int64_t *)memory, memory += rows * (int64_t)sizeof(int64_t);
    room.weights = (float *)memory, room.sums = room.weights + rows * KEYS, room.top = room.sums + rows * size;
    room.total = room.top + rows, room.keep = room.total + rows;
    return room;
}

/* What thread t of T does. runs [count][first row, rows, sequence, first own key, last + 1]; seen [rows]: how many of the
 * sequence's first keys each sees; sizes: H, G, E, strides of sequences and heads in the cache. */
static void attend_share(const VALUE *q, const VALUE *keys, const VALUE *values, VALUE *out, const int64_t *runs,
                         int64_t count, const int64_t *seen, const int64_t *sizes, char *memory, int64_t most,
                         int64_t t, int64_t T) {
    int64_t H = sizes[0], G = sizes[1], E = sizes[2], group = H / G;
    int64_t pieces = count * G % T && runs[1] >= T ? T : 1; /* rows shared out too, where heads do not come out even */
    Room room = room_in(memory, most * group, E);
#ifdef BY_TILES
    if (BY_TILES(E)) configure(ROWS, ROWS);
#endif
    for (int64_t task = t; task < count * G * pieces; task += T) {
        const int64_t *run = runs + task / pieces / G * RUN;
        int64_t g = task / pieces % G, piece = (task + g) % pieces; /* nobody gets the larger piece of every head */
        int64_t begin = run[1] * piece / pieces, end = run[1] * (piece + 1) / pieces, at = run[2] * sizes[3] + g * sizes[4];
        for (int64_t r = begin; r < end; r += most) {
            int64_t rows = end - r < most ? end - r : most, first = run[0] + r;
            const VALUE *from = q + first * H * E + g * group * E;
            VALUE *to = out + first * H * E + g * group * E;
            attend_run(from, to, seen + first, rows, H * E, group, keys + at, values + at, run + 3, E, &room);
        }
    }
#ifdef BY_TILES
    if (BY_TILES(E)) _tile_release();
#endif
}

/* q [N, H, E] of all runs to out [N, H, E]. */
void attend(const VALUE *q, const VALUE *keys, const VALUE *values, VALUE *out, const int64_t *runs, int64_t count,
            const int64_t *seen, const int64_t *sizes, int64_t threads) {
    int64_t most = 32, size = room_bytes(most * (sizes[0] / sizes[1]), sizes[2]);
#pragma omp parallel num_threads(threads)
    {
        WHICH_THREAD
        char *memory = aligned_alloc(64, (size + 63) / 64 * 64);
        attend_share(q, keys, values, out, runs, count, seen, sizes, memory, most, t, T);
        free(memory);
    }
}
#else
int has_attention(void) { return 0; }
#endif
