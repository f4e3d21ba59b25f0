/* Random bits and Gumbel noise of tokens. The reference implementation is gumbel.py: the same operations in the same order.
 *
 * The bits are those of PCG64DXSM, two tokens to a word: each position has a range of the stream of its own. */
#ifndef ORTHRUS_GUMBEL_H
#define ORTHRUS_GUMBEL_H

#include <stdint.h>
#include <string.h>

typedef unsigned __int128 uint128_t;

/* Where a stream starts, and its increment, lower halves first. */
typedef struct {
    uint64_t state[2], increment[2];
} NoiseStream;

static const uint64_t MULTIPLIER = 0xda942042e4dd58b5;

static inline uint128_t joined(const uint64_t *halves) { return (uint128_t)halves[1] << 64 | halves[0]; }

/* The state after `steps` further words. */
static uint128_t advanced(uint128_t state, uint128_t increment, uint128_t steps) {
    uint128_t factor = 1, sum = 0, multiplier = MULTIPLIER;
    for (; steps; steps >>= 1) {
        if (steps & 1) factor *= multiplier, sum = sum * multiplier + increment;
        increment *= multiplier + 1;
        multiplier *= multiplier;
    }
    return factor * state + sum;
}

static inline uint64_t next_word(uint128_t *state, uint128_t increment) {
    uint64_t high = (uint64_t)(*state >> 64), low = (uint64_t)*state | 1;
    *state = *state * MULTIPLIER + increment;
    high ^= high >> 32;
    high *= MULTIPLIER;
    high ^= high >> 48;
    return high * low;
}

/* The state before the first word of a position. */
static uint128_t position_start(const NoiseStream *stream, int64_t position) {
    return advanced(joined(stream->state), joined(stream->increment), (uint128_t)position << 64);
}

/* An integer below 2^52 as a double: exact, and unlike a cast one that compilers vectorise on every processor. */
static inline double double_of(uint64_t integer) {
    double x;
    integer |= (uint64_t)0x433 << 52;
    memcpy(&x, &integer, 8);
    return x - 0x1p52;
}

/* The natural logarithm of a normal number above 0 (fdlibm), without a branch. x = m 2^e, where m is at least the root of 1/2
 * and below that of 2. */
static inline double log_of(double x) {
    const uint64_t mantissa = 0xfffffffffffff, root = 0x6a09e667f3bcd; /* that of the root of 2 */
    uint64_t bits, large;
    double m, e;
    memcpy(&bits, &x, 8);
    large = ((bits & mantissa) + (mantissa + 1 - root)) >> 52;
    e = double_of((bits >> 52) + large) - 1023.0;
    bits = (bits & mantissa) | (1023 - large) << 52;
    memcpy(&m, &bits, 8);
    double f = m - 1.0, s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
    double r = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
    r = z * r + 1.818357216161805012e-01;
    r = z * r + 2.222219843214978396e-01;
    r = z * r + 2.857142874366239149e-01;
    r = z * r + 3.999999999940941908e-01;
    r = z * r + 6.666666666666735130e-01;
    r = z * r;
    return e * 6.93147180369123816490e-01 - ((half - (s * (half + r) + e * 1.90821492927058770002e-10)) - f);
}

static void gumbel(const uint32_t *bits, int64_t count, float *noise) {
    for (int64_t i = 0; i < count; i++) noise[i] = (float)-log_of(-log_of((double_of(bits[i]) + 0.5) * 0x1p-32));
}

#endif
