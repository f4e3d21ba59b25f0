/* Products on weights in groups by matrix tiles: see blocks.h. */
#if !defined(NO_TILES)
/* Sixteen different values are all that 32 inputs of an output can have: they are computed, then looked up. */
static inline void expand_four(const char *block, const Scales *by, VALUE *tile) {
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i own = _mm512_set1_epi16(0x0f0f), second = _mm512_set1_epi16(0x1010);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i packed = _mm512_loadu_si512(block + 64 * j), even = _mm512_and_si512(packed, own);
        __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(packed, 4), own, second, 0xEA);
#pragma GCC unroll 2
        for (int o = 4 * j; o < 4 * j + 4; o += 2) {
            __m512 low = _mm512_fmadd_ps(numbers, _mm512_set1_ps(by->scale[o]), _mm512_set1_ps(by->least[o]));
            __m512 high = _mm512_fmadd_ps(numbers, _mm512_set1_ps(by->scale[o + 1]), _mm512_set1_ps(by->least[o + 1]));
            __m512i values = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(tile + GROUP * o, _mm512_permutexvar_epi16(even, values));
            _mm512_storeu_si512(tile + GROUP * (o + 1), _mm512_permutexvar_epi16(odd, values));
            even = _mm512_srli_epi16(even, 8), odd = _mm512_srli_epi16(odd, 8);
        }
    }
}

static inline __m512 scaled(const char *bytes, float scale) {
    __m512i numbers = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(numbers), _mm512_set1_ps(scale));
}

static inline void expand_eight(const char *block, const Scales *by, VALUE *tile) {
#pragma GCC unroll 16
    for (int o = 0; o < LANES; o++) {
        const char *bytes = block + GROUP * o;
        __m512bh values = _mm512_cvtne2ps_pbh(scaled(bytes + LANES, by->scale[o]), scaled(bytes, by->scale[o]));
        _mm512_storeu_si512(tile + GROUP * o, (__m512i)values);
    }
}

/* A block to a tile of 16 outputs by 32 inputs. */
static inline void expand(int64_t form, const char *block, const Scales *by, VALUE *tile) {
    for (int l = 0; l < block_bytes(form); l += 64) fetch(block + l);
    if (form == FOUR) expand_four(block, by, tile);
    else expand_eight(block, by, tile);
}

/* 16 x 16 numbers of four bytes, turned about; rows lie `from_next` and `to_next` bytes apart. */
static void turn(const char *from, int64_t from_next, char *to, int64_t to_next, int64_t rows) {
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) a[r] = r < rows ? _mm512_loadu_si512(from + r * from_next) : _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int r = 0; r < 16; r += 2)
        b[r] = _mm512_unpacklo_epi32(a[r], a[r + 1]), b[r + 1] = _mm512_unpackhi_epi32(a[r], a[r + 1]);
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 4) {
        a[r] = _mm512_unpacklo_epi64(b[r], b[r + 2]), a[r + 1] = _mm512_unpackhi_epi64(b[r], b[r + 2]);
        a[r + 2] = _mm512_unpacklo_epi64(b[r + 1], b[r + 3]), a[r + 3] = _mm512_unpackhi_epi64(b[r + 1], b[r + 3]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++) {
        b[r] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0x88), b[r + 4] = _mm512_shuffle_i32x4(a[r], a[r + 4], 0xdd);
        b[r + 8] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0x88);
        b[r + 12] = _mm512_shuffle_i32x4(a[r + 8], a[r + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int r = 0; r < 8; r++) {
        _mm512_storeu_si512(to + r * to_next, _mm512_shuffle_i32x4(b[r], b[r + 8], 0x88));
        _mm512_storeu_si512(to + (r + 8) * to_next, _mm512_shuffle_i32x4(b[r], b[r + 8], 0xdd));
    }
}

/* Tiles 0-3 are sums (two groups of outputs by two of rows), 4-5 activations, 6-7 weights: outputs are the rows of tiles
 * here, as expanding is cheaper so. */
static void configure_turned(int64_t first, int64_t second) {
    int64_t rows[8] = {first, second, first, second, first, second, ROWS, ROWS};
    struct tiles to = {.palette = 1};
    for (int t = 0; t < 8; t++) to.rows[t] = ROWS, to.width[t] = (uint16_t)(4 * (rows[t] ? rows[t] : 1));
    _tile_loadconfig(&to);
}

/* sums [2][2][16 outputs][16 rows] of a panel; x [rows / 16][depth / 2][16 rows][2]. */
static inline __attribute__((always_inline)) void block_turned(const int64_t form, const char *x, const char *w, int64_t rows,
                                                               int64_t blocks, VALUE *room, char *sums) {
    int64_t tall = rows > ROWS, bytes = block_bytes(form), step = rows == 1 ? 4 : STEP;
    Scales scales[4]; /* of two steps: stored one step before they are wanted, as loading at once what was stored waits */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int i = 0; i < 4; i++) widen(form, w + i * bytes, scales + i);
    for (int i = 0; i < 2; i++) expand(form, w + i * bytes, scales + i, room + i * TILE_VALUES);
    for (int64_t k = 0; k < blocks; k++, w += 2 * bytes, x += ROWS * step) {
        VALUE *now = room + (k & 1) * 2 * TILE_VALUES, *after = room + (~k & 1) * 2 * TILE_VALUES;
        Scales *old = scales + (k & 1) * 2, *by = scales + (~k & 1) * 2;
        int more = k + 1 < blocks;
        if (k + 2 < blocks) widen(form, w + 4 * bytes, old), widen(form, w + 5 * bytes, old + 1);
        if (more) expand(form, w + 2 * bytes, by, after);
        _tile_loadd(4, x, step);
        _tile_loadd(6, now, STEP);
        _tile_dpbf16ps(0, 6, 4);
        if (tall) {
            _tile_loadd(5, x + blocks * TILE, STEP);
            _tile_dpbf16ps(1, 6, 5);
        }
        if (more) expand(form, w + 3 * bytes, by + 1, after + TILE_VALUES);
        _tile_loadd(7, now + TILE_VALUES, STEP);
        _tile_dpbf16ps(2, 7, 4);
        if (tall) _tile_dpbf16ps(3, 7, 5);
    }
    _tile_stored(0, sums, STEP);
    _tile_stored(1, sums + TILE, STEP);
    _tile_stored(2, sums + 2 * TILE, STEP);
    _tile_stored(3, sums + 3 * TILE, STEP);
}

/* At most 32 rows. `room`: four tiles, then the rows in pairs of inputs. */
static void multiply_few_turned(int64_t form, const VALUE *x, const char *w, const VALUE *bias, VALUE *y, int64_t rows,
                            int64_t depth, int64_t outputs, int64_t first, int64_t last, VALUE *room) {
    int64_t blocks = depth / GROUP;
    char sums[4 * TILE] __attribute__((aligned(64)));
    float turned[TILE / 4] __attribute__((aligned(64)));
    const char *packed = (const char *)x;
    if (rows > 1) {
        packed = (const char *)(room + 4 * TILE_VALUES);
        for (int64_t r = 0; r < rows; r += ROWS)
            for (int64_t k = 0; k < blocks; k++)
                turn((const char *)(x + r * depth + k * GROUP), 2 * depth, (char *)packed + (r / ROWS * blocks + k) * TILE, STEP,
                     rows - r);
    }
    configure_turned(rows < ROWS ? rows : ROWS, rows < ROWS ? 0 : rows - ROWS);
    for (int64_t out = first; out < last; out += PANEL) {
        const char *from = w + out / PANEL * panel_bytes(form, depth);
        if (form == FOUR) block_turned(FOUR, packed, from, rows, blocks, room, sums);
        else block_turned(EIGHT, packed, from, rows, blocks, room, sums);
        for (int64_t g = 0; g < 2; g++)
            for (int64_t r = 0; r < rows; r += ROWS) {
                turn(sums + (2 * g + r / ROWS) * TILE, STEP, (char *)turned, STEP, ROWS);
                int64_t at = out + g * ROWS;
                for (int64_t i = r; i < rows && i < r + ROWS; i++) FINISH(turned + (i - r) * ROWS, i, at);
            }
    }
    _tile_release();
}

enum { MANY = 128 };

/* See multiply_blocks; w [outputs / 32][depth / 32][2] blocks. Up to `MANY` rows it costs less to expand weights for every 32 of them
 * than to turn them about, once. */
static void multiply_turned(int64_t form, const VALUE *x, const char *w, const VALUE *bias, VALUE *y, int64_t rows,
                            int64_t depth, int64_t outputs, int64_t first, int64_t last, VALUE *room) {
    if (rows <= MANY) {
        for (int64_t r = 0; r < rows; r += 2 * ROWS)
            multiply_few_turned(form, x + r * depth, w, bias, y + r * outputs, rows - r < 2 * ROWS ? rows - r : 2 * ROWS, depth,
                                outputs, first, last, room);
        return;
    }
    VALUE tile[TILE_VALUES];
    for (int64_t out = first; out < last; out += PANEL) {
        const char *from = w + out / PANEL * panel_bytes(form, depth);
        for (int64_t k = 0; k < depth; k += GROUP)
            for (int64_t g = 0; g < 2; g++, from += block_bytes(form)) {
                Scales scales;
                widen(form, from, &scales);
                expand(form, from, &scales, tile);
                turn((const char *)tile, 2 * GROUP, (char *)(room + (g * depth + k) * LANES), 2 * GROUP, LANES);
            }
        multiply(x, room, bias ? bias + out : 0, y + out, rows, depth, outputs, 0, PANEL);
    }
}
#endif
