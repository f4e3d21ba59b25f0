/* How work is divided among the threads of a team. */
#ifndef ORTHRUS_THREADS_H
#define ORTHRUS_THREADS_H

#include <stdint.h>

#include "simd.h"

/* Thread `index` of `count`. */
typedef struct {
    int64_t index, count;
} Thread;

typedef struct {
    int64_t begin, end;
} Range;

/* The thread's share of `count` items. */
static inline Range split(int64_t count, Thread thread) {
    return (Range){count * thread.index / thread.count, count * (thread.index + 1) / thread.count};
}

/* The thread's share of the outputs of a linear map: whole panels of 32, of which the last may be shorter. */
static inline Range split_outputs(int64_t outputs, Thread thread) {
    Range panels = split((outputs + 2 * LANES - 1) / (2 * LANES), thread);
    int64_t end = panels.end * 2 * LANES;
    return (Range){panels.begin * 2 * LANES, end < outputs ? end : outputs};
}

/* What two ranges have in common; `end` may lie before `begin`. */
static inline Range intersection(Range a, Range b) {
    return (Range){a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

#endif
