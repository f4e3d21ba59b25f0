/* The scalar type of the library and vectors of sixteen fp32 lanes. */
#ifndef ORTHRUS_SIMD_H
#define ORTHRUS_SIMD_H

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define HAVE_AVX512
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAVE_VNNI
#endif
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#define HAVE_BF16_DOT
#endif

#ifdef BFLOAT16
typedef uint16_t scalar_t;

static inline float to_float(scalar_t stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline scalar_t from_float(float value) { /* round to nearest even */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (scalar_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float scalar_t;

static inline float to_float(scalar_t stored) { return stored; }

static inline scalar_t from_float(float value) { return value; }
#endif

/* exp by range reduction and a polynomial (Cephes), accurate to 2 units in the last place, and vectorisable. */
static inline float fast_exp(float x) {
    x = x > 88.0f ? 88.0f : (x < -87.0f ? -87.0f : x);
    float shifted = x * 1.44269504f + 12582912.0f, whole = shifted - 12582912.0f;
    float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = ((int32_t)whole + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

#if defined(__AVX512F__)
/* Weights are read from memory once and in order. The more arithmetic per weight, the less far the hardware prefetcher
 * looks ahead. */
enum { PREFETCH_BYTES = 4096 };

static inline void prefetch_ahead(const void *weights) {
    _mm_prefetch((const char *)weights + PREFETCH_BYTES, _MM_HINT_T0);
}

/* One float in all lanes, by a load alone: the code for `_mm512_set1_ps` takes a shuffle as well on Zen 4. */
static inline __m512 broadcast(const float *x) {
    __m512i lanes;
    __asm__("vpbroadcastd %1, %0" : "=v"(lanes) : "m"(*x));
    return _mm512_castsi512_ps(lanes);
}
#endif

#ifdef HAVE_AVX512
/* Sixteen scalars. */
static inline __m512 load_lanes(const scalar_t *x) {
#ifdef BFLOAT16
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)), 16));
#else
    return _mm512_loadu_ps(x);
#endif
}

static inline void store_lanes(scalar_t *y, __m512 values) {
#if defined(HAVE_BF16_DOT)
    _mm256_storeu_si256((__m256i *)y, (__m256i)_mm512_cvtneps_pbh(values));
#elif defined(BFLOAT16)
    __m512i bits = _mm512_castps_si512(values), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_storeu_si256((__m256i *)y, _mm512_cvtepi32_epi16(bits));
#else
    _mm512_storeu_ps(y, values);
#endif
}

/* exp of sixteen lanes, for x up to 80. */
static inline __m512 fast_exp_lanes(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(80.0f));
    __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fmadd_ps(whole, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, whole);
}
#endif

#endif
