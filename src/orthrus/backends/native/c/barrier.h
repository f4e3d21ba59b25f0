/* A barrier for the threads of a team. */
#ifndef ORTHRUS_BARRIER_H
#define ORTHRUS_BARRIER_H

#include <stdatomic.h>
#include <stdint.h>

#include "wait.h"

typedef struct {
    _Atomic int64_t waiting;
    Signal round;
} Barrier;

/* Returns once all `threads` threads have called it. */
static inline void barrier_wait(Barrier *barrier, int64_t threads) {
    uint32_t round = atomic_load_explicit(&barrier->round.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->waiting, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->waiting, 0, memory_order_relaxed);
        signal_set(&barrier->round, round + 1, threads - 1);
    } else signal_wait(&barrier->round, round);
}

#endif
