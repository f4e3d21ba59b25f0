/* A barrier for the threads of a team: spin `SPIN_LIMIT` iterations, then yield.
 *
 * OpenMP's own barrier spins on, and next to another busy program a pass takes fifty times as long. */
#ifndef ORTHRUS_BARRIER_H
#define ORTHRUS_BARRIER_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Longer than threads ever wait for one another where each has a processor. */
enum { SPIN_LIMIT = 1000 };

typedef struct {
    _Atomic int64_t waiting, round;
} Barrier;

static inline void spin_pause(void) {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

/* Returns once all `threads` threads have called it. */
static inline void barrier_wait(Barrier *barrier, int64_t threads) {
    int64_t round = atomic_load_explicit(&barrier->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->waiting, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&barrier->round, memory_order_acquire) == round; spins++)
        if (spins < SPIN_LIMIT) spin_pause();
        else sched_yield();
}

#endif
