/* simd.h on NEON: four registers hold sixteen lanes. DotProd and BF16 are used where the compiler may. */
#ifndef ORTHRUS_SIMD_NEON_H
#define ORTHRUS_SIMD_NEON_H

#include <arm_neon.h>
#include <stdint.h>

#define SIMD_REGISTERS 8

typedef struct {
    float32x4_t a, b, c, d;
} f32x16;
typedef struct {
    int32x4_t a, b, c, d;
} i32x16;
typedef i32x16 mask16;

/* An operation on all quarters. */
#define EACH(own, x) {own((x).a), own((x).b), own((x).c), own((x).d)}
#define EACH_PAIR(own, x, y) {own((x).a, (y).a), own((x).b, (y).b), own((x).c, (y).c), own((x).d, (y).d)}
#define EACH_TRIPLE(own, x, y, z)                                                                                      \
    {own((x).a, (y).a, (z).a), own((x).b, (y).b, (z).b), own((x).c, (y).c, (z).c), own((x).d, (y).d, (z).d)}

static inline float32x4_t max_quarter(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline float32x4_t min_quarter(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }

static inline f32x16 f32_of(float32x4_t x) { return (f32x16){x, x, x, x}; }
static inline i32x16 i32_of(int32x4_t x) { return (i32x16){x, x, x, x}; }
static inline f32x16 f32_zero(void) { return f32_of(vdupq_n_f32(0.0f)); }
static inline f32x16 f32_set1(float x) { return f32_of(vdupq_n_f32(x)); }
static inline f32x16 f32_broadcast(const float *x) { return f32_of(vld1q_dup_f32(x)); }
static inline f32x16 f32_load(const float *x) {
    return (f32x16){vld1q_f32(x), vld1q_f32(x + 4), vld1q_f32(x + 8), vld1q_f32(x + 12)};
}

static inline f32x16 f32_in_registers(f32x16 x) {
    __asm__("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d));
    return x;
}

static inline void f32_store(float *y, f32x16 x) {
    vst1q_f32(y, x.a);
    vst1q_f32(y + 4, x.b);
    vst1q_f32(y + 8, x.c);
    vst1q_f32(y + 12, x.d);
}

static inline f32x16 f32_add(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(vaddq_f32, x, y); }
static inline f32x16 f32_sub(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(vsubq_f32, x, y); }
static inline f32x16 f32_mul(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(vmulq_f32, x, y); }
static inline f32x16 f32_div(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(vdivq_f32, x, y); }
static inline f32x16 f32_max(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(max_quarter, x, y); }
static inline f32x16 f32_min(f32x16 x, f32x16 y) { return (f32x16)EACH_PAIR(min_quarter, x, y); }
static inline f32x16 f32_abs(f32x16 x) { return (f32x16)EACH(vabsq_f32, x); }
static inline f32x16 f32_fma(f32x16 x, f32x16 y, f32x16 z) { return (f32x16)EACH_TRIPLE(vfmaq_f32, z, x, y); }
static inline f32x16 f32_fnma(f32x16 x, f32x16 y, f32x16 z) { return (f32x16)EACH_TRIPLE(vfmsq_f32, z, x, y); }
static inline f32x16 f32_round(f32x16 x) { return (f32x16)EACH(vrndnq_f32, x); }
static inline f32x16 f32_reciprocal(f32x16 x) { return f32_div(f32_set1(1.0f), x); }

static inline i32x16 i32_zero(void) { return i32_of(vdupq_n_s32(0)); }
static inline i32x16 i32_set1(int32_t x) { return i32_of(vdupq_n_s32(x)); }
static inline i32x16 i32_broadcast(const void *x) { return i32_of(vreinterpretq_s32_f32(vld1q_dup_f32(x))); }
static inline i32x16 i32_in_registers(i32x16 x) {
    __asm__("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d));
    return x;
}
static inline int32x4_t load_quarter(const void *x, int q) { return vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)x + 16 * q)); }

static inline i32x16 i32_load(const void *x) {
    return (i32x16){load_quarter(x, 0), load_quarter(x, 1), load_quarter(x, 2), load_quarter(x, 3)};
}

static inline void i32_store(void *y, i32x16 x) {
    vst1q_u8(y, vreinterpretq_u8_s32(x.a));
    vst1q_u8((uint8_t *)y + 16, vreinterpretq_u8_s32(x.b));
    vst1q_u8((uint8_t *)y + 32, vreinterpretq_u8_s32(x.c));
    vst1q_u8((uint8_t *)y + 48, vreinterpretq_u8_s32(x.d));
}

#define SHIFT_LEFT(x) (int32x4_t)((uint32x4_t)(x) << bits)
#define SHIFT_RIGHT(x) (int32x4_t)((uint32x4_t)(x) >> bits)
static inline i32x16 i32_add(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(vaddq_s32, x, y); }
static inline i32x16 i32_sub(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(vsubq_s32, x, y); }
static inline i32x16 i32_and(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(vandq_s32, x, y); }
static inline i32x16 i32_or(i32x16 x, i32x16 y) { return (i32x16)EACH_PAIR(vorrq_s32, x, y); }
static inline i32x16 i32_shift_left(i32x16 x, int bits) { return (i32x16)EACH(SHIFT_LEFT, x); }
static inline i32x16 i32_shift_right(i32x16 x, int bits) { return (i32x16)EACH(SHIFT_RIGHT, x); }
static inline int32x4_t swap_halves_quarter(int32x4_t x) { return vreinterpretq_s32_s16(vrev32q_s16(vreinterpretq_s16_s32(x))); }
static inline i32x16 i32_swap_halves(i32x16 x) { return (i32x16)EACH(swap_halves_quarter, x); }
static inline f32x16 i32_to_f32(i32x16 x) { return (f32x16)EACH(vcvtq_f32_s32, x); }
static inline i32x16 f32_to_i32(f32x16 x) { return (i32x16)EACH(vcvtnq_s32_f32, x); }
static inline f32x16 i32_as_f32(i32x16 x) { return (f32x16)EACH(vreinterpretq_f32_s32, x); }
static inline i32x16 f32_as_i32(f32x16 x) { return (i32x16)EACH(vreinterpretq_s32_f32, x); }

static inline f32x16 f32_scale(f32x16 x, f32x16 whole) {
    return f32_mul(x, i32_as_f32(i32_shift_left(i32_add(f32_to_i32(whole), i32_set1(127)), 23)));
}

static inline float f32_reduce_add(f32x16 x) {
    float32x4_t quarter = vaddq_f32(vaddq_f32(x.b, x.d), vaddq_f32(x.a, x.c));
    float32x2_t two = vadd_f32(vget_high_f32(quarter), vget_low_f32(quarter));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

static inline float f32_reduce_max(f32x16 x) {
    float32x4_t quarter = max_quarter(max_quarter(x.d, x.b), max_quarter(x.c, x.a));
    float lanes[4], max;
    vst1q_f32(lanes, quarter);
    max = lanes[0];
    for (int l = 1; l < 4; l++) max = lanes[l] > max ? lanes[l] : max;
    return max;
}

static inline int f32_any_greater(f32x16 x, f32x16 y) {
    uint32x4_t low = vorrq_u32(vcgtq_f32(x.a, y.a), vcgtq_f32(x.b, y.b));
    return vmaxvq_u32(vorrq_u32(low, vorrq_u32(vcgtq_f32(x.c, y.c), vcgtq_f32(x.d, y.d)))) != 0;
}

static inline mask16 lanes_between(int64_t first, int64_t stop, int64_t i) {
    int32_t lanes[16], from = (int32_t)(first - i), to = (int32_t)(stop - i);
    for (int l = 0; l < 16; l++) lanes[l] = l >= from && l < to ? -1 : 0;
    return i32_load(lanes);
}

static inline f32x16 f32_keep(mask16 mask, f32x16 x) { return i32_as_f32(i32_and(mask, f32_as_i32(x))); }

static inline float32x4_t select_quarter(int32x4_t mask, float32x4_t x, float32x4_t y) {
    return vbslq_f32(vreinterpretq_u32_s32(mask), x, y);
}

static inline f32x16 f32_mask_max(mask16 mask, f32x16 x, f32x16 y) {
    f32x16 max = f32_max(x, y);
    return (f32x16)EACH_TRIPLE(select_quarter, mask, max, x);
}

static inline int16x8_t narrow(int32x4_t x, int32x4_t y) { return vcombine_s16(vmovn_s32(x), vmovn_s32(y)); }

static inline void i32_store_bytes(uint8_t *y, i32x16 x) {
    vst1q_s8((int8_t *)y, vcombine_s8(vmovn_s16(narrow(x.a, x.b)), vmovn_s16(narrow(x.c, x.d))));
}

static inline void i32_store_i16(void *y, i32x16 x) {
    vst1q_s16(y, narrow(x.a, x.b));
    vst1q_s16((int16_t *)y + 8, narrow(x.c, x.d));
}

static inline i32x16 widen(int16x8_t x, int16x8_t y) {
    return (i32x16){
        vmovl_s16(vget_low_s16(x)), vmovl_s16(vget_high_s16(x)), vmovl_s16(vget_low_s16(y)), vmovl_s16(vget_high_s16(y)),
    };
}

static inline i32x16 i32_load_i16(const void *x) { return widen(vld1q_s16(x), vld1q_s16((const int16_t *)x + 8)); }
static inline f32x16 load_bf16(const uint16_t *x) { return i32_as_f32(i32_shift_left(i32_load_i16(x), 16)); }

static inline f32x16 load_f16(const void *x) {
    const __fp16 *from = (const __fp16 *)x;
    float16x8_t low = vld1q_f16(from), high = vld1q_f16(from + 8);
    return (f32x16){
        vcvt_f32_f16(vget_low_f16(low)), vcvt_f32_f16(vget_high_f16(low)), vcvt_f32_f16(vget_low_f16(high)),
        vcvt_f32_f16(vget_high_f16(high)),
    };
}

static inline f32x16 load_i8(const void *x) {
    int8x16_t bytes = vld1q_s8(x);
    return i32_to_f32(widen(vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes))));
}

static inline f32x16 load_u8(const void *x) {
    uint8x16_t bytes = vld1q_u8(x);
    int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
    return i32_to_f32(widen(low, vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)))));
}

static inline i32x16 i32_load_words(const void *x, int64_t count) {
    int32x4_t zero = vdupq_n_s32(0);
    if (count < 16) return (i32x16){load_quarter(x, 0), load_quarter(x, 1), zero, zero};
    return i32_load(x);
}

static inline i32x16 i32_repeat4(const void *x) { return i32_of(load_quarter(x, 0)); }

static inline float32x4_t reduce_quarter(float32x4_t p, float32x4_t q, float32x4_t r, float32x4_t s) {
    float32x4_t a = vaddq_f32(vzip1q_f32(p, q), vzip2q_f32(p, q)), b = vaddq_f32(vzip1q_f32(r, s), vzip2q_f32(r, s));
    return vcombine_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a)), vadd_f32(vget_low_f32(b), vget_high_f32(b)));
}

static inline f32x16 f32_reduce_quarters(const f32x16 *x) {
    return (f32x16){
        reduce_quarter(x[0].a, x[1].a, x[2].a, x[3].a), reduce_quarter(x[0].b, x[1].b, x[2].b, x[3].b),
        reduce_quarter(x[0].c, x[1].c, x[2].c, x[3].c), reduce_quarter(x[0].d, x[1].d, x[2].d, x[3].d),
    };
}

static inline void transpose_4x4(const int32_t *const *rows, int32_t *out, int64_t stride) {
    int32x4x2_t top = vtrnq_s32(vld1q_s32(rows[0]), vld1q_s32(rows[1]));
    int32x4x2_t bottom = vtrnq_s32(vld1q_s32(rows[2]), vld1q_s32(rows[3]));
    vst1q_s32(out, vcombine_s32(vget_low_s32(top.val[0]), vget_low_s32(bottom.val[0])));
    vst1q_s32(out + stride, vcombine_s32(vget_low_s32(top.val[1]), vget_low_s32(bottom.val[1])));
    vst1q_s32(out + 2 * stride, vcombine_s32(vget_high_s32(top.val[0]), vget_high_s32(bottom.val[0])));
    vst1q_s32(out + 3 * stride, vcombine_s32(vget_high_s32(top.val[1]), vget_high_s32(bottom.val[1])));
}

static inline i32x16 interleave_i16(const void *x, const void *y) {
    int16x8x2_t low = vzipq_s16(vld1q_s16(x), vld1q_s16(y));
    int16x8x2_t high = vzipq_s16(vld1q_s16((const int16_t *)x + 8), vld1q_s16((const int16_t *)y + 8));
    return (i32x16){
        vreinterpretq_s32_s16(low.val[0]), vreinterpretq_s32_s16(low.val[1]), vreinterpretq_s32_s16(high.val[0]),
        vreinterpretq_s32_s16(high.val[1]),
    };
}

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
#define HAVE_BF16_DOT
static inline float32x4_t dot_bf16_quarter(float32x4_t sums, int32x4_t a, int32x4_t b) {
    return vbfdotq_f32(sums, vreinterpretq_bf16_s32(a), vreinterpretq_bf16_s32(b));
}

static inline f32x16 dot_bf16(f32x16 sums, i32x16 a, i32x16 b) { return (f32x16)EACH_TRIPLE(dot_bf16_quarter, sums, a, b); }
#endif

enum { INT8_SHIFT = 0 };

static inline int32x4_t dot_i8_quarter(int32x4_t sums, int32x4_t codes, int32x4_t weights) {
    int8x16_t a = vreinterpretq_s8_s32(codes), b = vreinterpretq_s8_s32(weights);
#ifdef __ARM_FEATURE_DOTPROD
    return vdotq_s32(sums, a, b);
#else
    return vpadalq_s16(sums, vpaddq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vmull_high_s8(a, b)));
#endif
}

static inline i32x16 dot_i8(i32x16 sums, i32x16 codes, i32x16 weights) {
    return (i32x16)EACH_TRIPLE(dot_i8_quarter, sums, codes, weights);
}

#ifdef __ARM_FEATURE_MATMUL_INT8
#define HAVE_I8MM
static inline int32x4_t mmla_i8_quarter(int32x4_t sums, int32x4_t rows, int32x4_t outputs) {
    return vmmlaq_s32(sums, vreinterpretq_s8_s32(rows), vreinterpretq_s8_s32(outputs));
}

static inline i32x16 mmla_i8(i32x16 sums, i32x16 rows, i32x16 outputs) {
    return (i32x16)EACH_TRIPLE(mmla_i8_quarter, sums, rows, outputs);
}

static inline i32x16 mmla_rows(const void *x, const void *y) {
    return i32_of(vreinterpretq_s32_u8(vcombine_u8(vld1_u8(x), vld1_u8(y))));
}

static inline int32x4_t mmla_half(int row, int32x4_t x, int32x4_t y) {
    return row ? vcombine_s32(vget_high_s32(x), vget_high_s32(y)) : vcombine_s32(vget_low_s32(x), vget_low_s32(y));
}

static inline i32x16 mmla_row(int row, i32x16 x, i32x16 y) {
    return (i32x16){mmla_half(row, x.a, x.b), mmla_half(row, x.c, x.d), mmla_half(row, y.a, y.b), mmla_half(row, y.c, y.d)};
}
#endif

static inline int32x4_t high_nibbles_quarter(int32x4_t x) {
    return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(x), 4));
}

static inline i32x16 low_nibbles(i32x16 x) { return i32_and(x, i32_set1(0x0f0f0f0f)); }
static inline i32x16 high_nibbles(i32x16 x) { return (i32x16)EACH(high_nibbles_quarter, x); }
static inline i32x16 dot_u4(i32x16 part, i32x16 nibbles, i32x16 codes) { return dot_i8(part, nibbles, codes); }
static inline i32x16 u4_sums(i32x16 part) { return part; }
static inline i32x16 dot_u6(i32x16 sums, i32x16 a, i32x16 x, i32x16 b, i32x16 y) { return dot_i8(dot_i8(sums, a, x), b, y); }

#endif
