/* The products of a block of attention on matrix tiles, in bf16: see attention.h. A row takes part in products with keys
 * that it does not see, with a weight of zero: that adds zeros, which changes no bit of a sum. */
#if defined(BFLOAT16) && !defined(NO_TILES)
#define BY_TILES(size) (use_tiles && (size) % 32 == 0)

/* Query rows, one after another, the last tile filled up with zeros. */
static void pack_queries(const VALUE *const *q, VALUE *packed, int64_t rows, int64_t size) {
    for (int64_t r = 0; r < rows; r++) memcpy(packed + r * size, q[r], size * sizeof(VALUE));
    memset(packed + rows * size, 0, ((rows + 15) / 16 * 16 - rows) * size * sizeof(VALUE));
}

/* scores[r][j] = q_r k_j for 16 rows at a time over pairs of chunks of 16 transposed keys. */
static void score_tiles(const VALUE *packed, const int32_t *keys, float *scores, int64_t rows, int64_t chunks, int64_t size) {
    int64_t words = size / 2;
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t c = 0; c < chunks; c += 2) {
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t i = 0; i < words; i += 16) {
                _tile_loadd(4, packed + r * size + 2 * i, size * (int64_t)sizeof(VALUE));
                _tile_loadd(6, keys + 16 * (c * words + i), STEP);
                _tile_loadd(7, keys + 16 * ((c + 1) * words + i), STEP);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
            _tile_stored(0, scores + r * KEYS + 16 * c, KEYS * 4);
            _tile_stored(1, scores + r * KEYS + 16 * (c + 1), KEYS * 4);
        }
}

/* v [count, size] in pairs of keys, [padded / 2][size][2], zeros for keys that are not there. */
static void pair_values(const VALUE *v, VALUE *pairs, int64_t count, int64_t padded, int64_t size) {
    for (int64_t j = 0; j < padded; j += 2, v += 2 * size, pairs += 2 * size)
        for (int64_t i = 0; i < size; i += 32) {
            __m512i found[2];
            pair_features(v + i, count - j, size, ~0u, found);
            _mm512_storeu_si512(pairs + 2 * i, found[0]);
            _mm512_storeu_si512(pairs + 2 * i + 32, found[1]);
        }
}

/* sums[r] = sums[r] * keep[r] + weights[r] v over `count` keys, a multiple of 32. */
static void gather_tiles(const float *weights, const float *keep, const VALUE *pairs, float *sums, int64_t rows, int64_t count,
                         int64_t size) {
    float found[2 * 256] __attribute__((aligned(64)));
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t i = 0; i < size; i += 32) {
            _tile_zero(0);
            _tile_zero(1);
            for (int64_t j = 0; j < count; j += 32) {
                _tile_loadd(4, (const VALUE *)(weights + r * KEYS) + j, KEYS * 4);
                _tile_loadd(6, pairs + j * size + 2 * i, size * 4);
                _tile_loadd(7, pairs + j * size + 2 * i + 32, size * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
            }
            _tile_stored(0, found, STEP);
            _tile_stored(1, found + 256, STEP);
            for (int64_t n = r; n < rows && n < r + 16; n++)
                for (int64_t half = 0; half < 2; half++) {
                    float *to = sums + n * size + i + 16 * half;
                    __m512 old = _mm512_mul_ps(_mm512_loadu_ps(to), _mm512_set1_ps(keep[n]));
                    _mm512_storeu_ps(to, _mm512_add_ps(old, _mm512_load_ps(found + 256 * half + 16 * (n - r))));
                }
        }
}
#endif
