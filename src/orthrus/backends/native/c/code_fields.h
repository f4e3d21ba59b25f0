/* Codes as bit fields, for products that expand them: a field is masked where it lies, as the low bits of a number in fp32
 * whose unit they are, so most fields need no shift.
 *
 * The codes of 32 inputs of 16 outputs are 32 halves of sixteen lanes, and fill as many vectors of words as they have bits. Half
 * h is the input h of output l in lane l; where bf16 is rounded in pairs (LANES_IN_PAIRS), the halves 2 v and 2 v + 1 are
 * the inputs 2 v + l % 2 of output l / 2 and of output 8 + l / 2 (but see dequantize_quads.h). At five and six bits the last two halves are in the bits
 * that the others leave in all words, two by two. */
#ifndef ORTHRUS_CODE_FIELDS_H
#define ORTHRUS_CODE_FIELDS_H

#include <stdint.h>

#include "group_quantized.h"
#include "simd.h"

#if defined(SIMD_AVX512) && defined(HAVE_BF16_DOT)
#define LANES_IN_PAIRS 1
#else
#define LANES_IN_PAIRS 0
#endif

enum { HALVES = 32, MANTISSA_BITS = 23 };

static inline int half_output(int half, int lane) { return LANES_IN_PAIRS ? half % 2 * 8 + lane / 2 : lane; }
static inline int half_input(int half, int lane) { return LANES_IN_PAIRS ? half / 2 * 2 + lane % 2 : half; }

static inline int fields_of_word(int bits) { return 32 / bits; }
static inline int is_spare(int bits, int half) { return half >= bits * fields_of_word(bits); }

/* Where field `f` of a word is masked. */
static inline int field_place(int bits, int f) {
    switch (bits) {
    case 4: return 4 * (f % 5);
    case 5: return 7 + 5 * (f % 3 - (f == 5 ? 2 : 0));
    case 6: return 6 * (f % 3);
    default: return 7 + 8 * (f % 2);
    }
}

/* By how many bits a word is moved down (up, if negative) before; at eight bits, its halves are swapped instead. */
static inline int field_shift(int bits, int f) {
    switch (bits) {
    case 4: return f < 5 ? 0 : 20;
    case 5: return f < 3 ? 0 : f < 5 ? 15 : -7;
    case 6: return f < 3 ? 0 : 18;
    default: return f < 2 ? 0 : 16;
    }
}

static inline int spare_place(int bits, int half) { return (bits == 5 ? 7 : 0) + bits * (half % 2); }
/* Where a word has two spare bits, and what they are moved to in word `j`. */
static inline int spare_at(int bits) { return bits == 5 ? 5 : 30; }
static inline int spare_to(int bits, int j) { return (bits == 5 ? 7 : 0) + 2 * j; }

ALWAYS_INLINE i32x16 moved_down(i32x16 words, const int places) {
    return places > 0 ? i32_shift_right(words, places) : places < 0 ? i32_shift_left(words, -places) : words;
}

/* The spare bits of all words of a group. */
ALWAYS_INLINE i32x16 spare_words(const int bits, const char *codes) {
    i32x16 all = i32_zero();
    if (bits == 4 || bits == 8) return all;
#pragma GCC unroll 6
    for (int j = 0; j < bits; j++) {
        i32x16 moved = moved_down(i32_load(codes + 64 * j), spare_at(bits) - spare_to(bits, j));
        all = i32_or(all, i32_and(moved, i32_set1(3 << spare_to(bits, j))));
    }
    return all;
}

/* The codes of a half plus `*unit`, in fp32, exactly. */
ALWAYS_INLINE f32x16 raised_codes(const int bits, const char *codes, i32x16 spare, const int half, float *unit) {
    const int f = half % fields_of_word(bits), place = is_spare(bits, half) ? spare_place(bits, half) : field_place(bits, f);
    i32x16 words = spare;
    if (!is_spare(bits, half)) {
        words = i32_load(codes + 64 * (half / fields_of_word(bits)));
        words = bits == 8 ? (f < 2 ? words : i32_swap_halves(words)) : moved_down(words, field_shift(bits, f));
    }
    *unit = (float)(1 << (MANTISSA_BITS - place));
    const int32_t mask = ((1 << bits) - 1) << place, exponent = (127 + MANTISSA_BITS - place) << MANTISSA_BITS;
    return i32_as_f32(i32_or(i32_and(words, i32_set1(mask)), i32_set1(exponent)));
}

#endif
