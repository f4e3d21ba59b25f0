/* The floating-point state of a thread.
 *
 * A caller may have set flush-to-zero in its own thread, or before the pool of threads was made. Every thread therefore
 * sets the default state itself: otherwise the bits of a row would depend on the thread that computed it. */
#ifndef ORTHRUS_FLOAT_STATE_H
#define ORTHRUS_FLOAT_STATE_H

#if defined(__x86_64__)
#include <immintrin.h>

enum { DEFAULT_MXCSR = 0x1f80 }; /* round to nearest, keep denormals, mask all exceptions */
typedef unsigned FloatState;

static inline FloatState set_default_float_state(void) {
    FloatState before = _mm_getcsr();
    _mm_setcsr(DEFAULT_MXCSR);
    return before;
}

static inline void restore_float_state(const FloatState *before) { _mm_setcsr(*before); }
#elif defined(__aarch64__)
#include <stdint.h>

typedef uint64_t FloatState; /* FPCR: zero is the default state */

static inline FloatState set_default_float_state(void) {
    FloatState before;
    __asm__ volatile("mrs %0, fpcr\n\tmsr fpcr, xzr" : "=&r"(before));
    return before;
}

static inline void restore_float_state(const FloatState *before) { __asm__ volatile("msr fpcr, %0" : : "r"(*before)); }
#else
typedef int FloatState;

static inline FloatState set_default_float_state(void) { return 0; }

static inline void restore_float_state(const FloatState *before) { (void)before; }
#endif

/* The type of a variable that holds the caller's state and restores it at the end of its scope:
 *     SCOPED_FLOAT_STATE caller = set_default_float_state(); */
#define SCOPED_FLOAT_STATE __attribute__((cleanup(restore_float_state), unused)) FloatState

#endif
