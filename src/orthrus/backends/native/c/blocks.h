/* Weights in groups, as GGUF files hold them: 32 inputs of an output share a scale and, of four bits, a least value. Each is
 * expanded to the very bf16 value that it stands for where it is about to be used: memory moves a third of the bytes, and
 * not a bit changes.
 *
 * A block is 32 inputs of 16 outputs: their numbers, 16 scales and, of four bits, 16 least values (fp16). For tiles, an output
 * follows another, and of four bits a word holds one input of four outputs. Without them, numbers lie in the order of the
 * weights in products.h, and of four bits a word holds an output's inputs i, i + 8, i + 16, i + 24. */

/* How weights are stored: as they are, in int8 with a scale for each output, in groups of four and of eight bits to be expanded,
 * in groups of four to be multiplied as integers (grouped.h). */
enum { PLAIN, INT8, FOUR, EIGHT, GROUPED };
enum { GROUP = 32, TILE_VALUES = GROUP * LANES, FOUR_BYTES = TILE_VALUES / 2 + 4 * LANES, EIGHT_BYTES = TILE_VALUES + 2 * LANES };

#if defined(BFLOAT16) && defined(__AVX512BF16__) && defined(__AVX512BW__)

int has_blocks(void) { return GROUP; }

static inline int64_t block_bytes(int64_t form) { return form == FOUR ? FOUR_BYTES : EIGHT_BYTES; }

/* Bytes of a panel: 32 inputs after another, of 16 outputs and then of 16 more. */
static inline int64_t panel_bytes(int64_t form, int64_t depth) { return depth / GROUP * 2 * block_bytes(form); }

/* Scales and least values of a block, fp32, in memory, where a number is repeated without arithmetic. */
typedef struct {
    float scale[LANES], least[LANES];
} Scales;

static inline void widen(int64_t form, const char *block, Scales *to) {
    const __m256i *halves = (const __m256i *)(block + block_bytes(form));
    if (form == FOUR) {
        _mm512_storeu_ps(to->scale, _mm512_cvtph_ps(_mm256_loadu_si256(halves - 2)));
        _mm512_storeu_ps(to->least, _mm512_cvtph_ps(_mm256_loadu_si256(halves - 1)));
    } else _mm512_storeu_ps(to->scale, _mm512_cvtph_ps(_mm256_loadu_si256(halves - 1)));
    __asm__("" : "+m"(*to)); /* or the compiler keeps them in registers */
}

#include "tile_blocks.h"

/* Weights of four outputs, 4 apart, by 32 inputs: w[c] has inputs 8 c and on. */
static inline __attribute__((always_inline)) void expand_quad(const int64_t form, const char *block, const Scales *by, int q,
                                                              __m512bh *w) {
    if (form == FOUR) {
        const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i own = _mm512_set1_epi16(15);
        const int64_t one = 0x10001000100010; /* four words of 16 */
        const __m512i output = _mm512_set_epi64(3 * one, 3 * one, 2 * one, 2 * one, one, one, 0, 0);
        __m512 values[4];
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++)
            values[l] = _mm512_fmadd_ps(numbers, everywhere(by->scale + 4 * l + q), everywhere(by->least + 4 * l + q));
        __m512i low = (__m512i)_mm512_cvtne2ps_pbh(values[1], values[0]), high = (__m512i)_mm512_cvtne2ps_pbh(values[3], values[2]);
        __m512i packed = _mm512_loadu_si512(block + 64 * q);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            __m512i index = _mm512_ternarylogic_epi32(c ? _mm512_srli_epi16(packed, 4 * c) : packed, own, output, 0xEA);
            w[c] = (__m512bh)_mm512_permutex2var_epi16(low, index, high);
        }
    } else {
        __m512 all = _mm512_loadu_ps(by->scale);
        __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
        __m512 low = _mm512_permutexvar_ps(_mm512_add_epi32(half, _mm512_set1_epi32(q)), all);
        __m512 high = _mm512_permutexvar_ps(_mm512_add_epi32(half, _mm512_set1_epi32(q + 8)), all);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const __m128i *bytes = (const __m128i *)(block + 32 * (4 * c + q));
            __m512 a = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)));
            __m512 b = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes + 1)));
            w[c] = _mm512_cvtne2ps_pbh(_mm512_mul_ps(b, high), _mm512_mul_ps(a, low));
        }
    }
}

/* Eight inputs, four times over, written so once for all outputs: repeating them takes a shuffle on Zen 4. */
static inline __m512bh quad(const VALUE *quads, int64_t at) { return (__m512bh)_mm512_loadu_si512(quads + 4 * at); }

/* `rows` (a constant where this is inlined) rows, `quads` of them, by 16 outputs; with `room` instead of rows, the weights,
 * expanded. */
static inline __attribute__((always_inline)) void panel_blocks(const int64_t form, const VALUE *quads, const char *w,
                                                               const VALUE *bias, VALUE *y, const int rows, int64_t depth,
                                                               int64_t outputs, VALUE *room) {
    __m512 sums[MOST_ROWS][4];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) sums[r][q] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k += GROUP, w += block_bytes(form)) {
        Scales scales;
        widen(form, w, &scales);
        for (int l = 0; l < block_bytes(form); l += 64) fetch(w + l);
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512bh weights[4];
            expand_quad(form, w, &scales, q, weights);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                if (!rows) _mm512_storeu_si512(room + (k + CHUNK * c) * LANES + 4 * CHUNK * q, (__m512i)weights[c]);
#pragma GCC unroll 6
                for (int r = 0; r < rows; r++)
                    sums[r][q] = _mm512_dpbf16_ps(sums[r][q], quad(quads, r * depth + k + CHUNK * c), weights[c]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) finish_parts(sums[r], bias, y + r * outputs);
}

#define ROWS_OF(count)                                                                                                 \
    panel_blocks(form, room + 4 * r * depth, w, bias, y + r * outputs, count, depth, outputs, room)
/* All rows by 16 outputs: every weight is expanded once, in registers for few rows, whose quads are in `room`, else into it. */
static inline __attribute__((always_inline)) void panel_expanded(const int64_t form, const VALUE *x, const char *w,
                                                                 const VALUE *bias, VALUE *y, int64_t rows, int64_t depth,
                                                                 int64_t outputs, VALUE *room) {
    if (rows <= MOST_ROWS) EVERY_ROW(MOST_ROWS, UP_TO_SIX)
    else {
        panel_blocks(form, 0, w, bias, y, 0, depth, outputs, room);
        multiply_panel(x, room, w + depth / GROUP * block_bytes(form), block_bytes(form) * CHUNK / GROUP, bias, y, rows, depth,
                       outputs);
    }
}
#undef ROWS_OF

/* Values of a thread's own room: a panel of 32 outputs and four tiles. */
#define ROOM(depth) (PANEL * (depth) + 4 * TILE_VALUES)
/* Outputs `first` to `last` of y [rows, outputs] = x [rows, depth] w^T + bias; w [outputs / 32][depth / 32][2] blocks for
 * tiles, else [outputs / 16][depth / 32]. */
static void multiply_blocks(int64_t form, const VALUE *x, const char *w, const VALUE *bias, VALUE *y, int64_t rows,
                            int64_t depth, int64_t outputs, int64_t first, int64_t last, VALUE *room) {
#ifndef NO_TILES
    if (use_tiles) {
        multiply_turned(form, x, w, bias, y, rows, depth, outputs, first, last, room);
        return;
    }
#endif
    if (rows <= MOST_ROWS)
        for (int64_t i = 0; i < rows * depth; i += CHUNK) _mm512_storeu_si512(room + 4 * i, (__m512i)four_times(x + i));
    for (int64_t out = first; out < last; out += LANES) {
        const char *from = w + out / LANES * (depth / GROUP) * block_bytes(form);
        const VALUE *add = bias ? bias + out : 0;
        if (form == FOUR) panel_expanded(FOUR, x, from, add, y + out, rows, depth, outputs, room);
        else panel_expanded(EIGHT, x, from, add, y + out, rows, depth, outputs, room);
    }
}

/* The whole of it. */
void linear_blocks(const VALUE *x, const char *w, const VALUE *bias, VALUE *y, VALUE *room, const int64_t *sizes) {
    int64_t rows = sizes[0], depth = sizes[1], outputs = sizes[2], form = sizes[3], threads = sizes[4];
    EVERY_THREAD(multiply_blocks(form, x, w, bias, y, rows, depth, outputs, first, last, room + t * ROOM(depth)))
}
#else
int has_blocks(void) { return 0; }
#define ROOM(depth) 0
#define multiply_blocks(...)
#endif
