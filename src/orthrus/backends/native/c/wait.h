/* Waiting for another thread: spin for a while, then sleep.
 *
 * A thread that spins on beside another busy program takes the processor on which the thread it waits for could run: a pass
 * then takes many times as long. */
#ifndef ORTHRUS_WAIT_H
#define ORTHRUS_WAIT_H

#include <stdatomic.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Longer than threads usually wait for one another where each has a processor. To sleep and be woken takes as long. */
enum { SPIN_LIMIT = 1000 };

/* A number that one thread changes while others wait for that; `sleepers` counts those that stopped spinning. */
typedef struct {
    _Atomic uint32_t value, sleepers;
} Signal;

/* See team.c. A sleeper may wake early; at most `count` of them are woken. */
__attribute__((visibility("hidden"))) void sleep_while_equal(_Atomic uint32_t *value, uint32_t old);
__attribute__((visibility("hidden"))) void wake_sleepers(_Atomic uint32_t *value, int64_t count);

static inline void spin_pause(void) {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

/* Returns the value once it is no longer `old`. */
static inline uint32_t signal_wait(Signal *signal, uint32_t old) {
    uint32_t value = old;
    for (int spins = 0; spins < SPIN_LIMIT; spins++) {
        if ((value = atomic_load_explicit(&signal->value, memory_order_acquire)) != old) return value;
        spin_pause();
    }
    atomic_fetch_add(&signal->sleepers, 1);
    while ((value = atomic_load(&signal->value)) == old) sleep_while_equal(&signal->value, old);
    atomic_fetch_sub(&signal->sleepers, 1);
    return value;
}

/* Changes the value. Whoever is about to sleep has counted itself before it reads the value once more: it sees the new
 * value, or is seen here. At most `count` sleepers are woken. */
static inline void signal_set(Signal *signal, uint32_t value, int64_t count) {
    atomic_store(&signal->value, value);
    if (atomic_load(&signal->sleepers)) wake_sleepers(&signal->value, count);
}

#endif
