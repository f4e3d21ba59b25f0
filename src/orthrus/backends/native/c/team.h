/* Parallel regions: a function that every thread of a team runs. */
#ifndef ORTHRUS_TEAM_H
#define ORTHRUS_TEAM_H

#include <stdint.h>

#include "threads.h"

typedef void Share(void *argument, Thread thread);

/* Runs share(argument, thread) on every thread of a team, the caller's included, and returns when all are done. All have
 * the default floating-point state meanwhile.
 *
 * The team has at most `threads` threads: those that come within `team_patience` nanoseconds. Beside other busy programs the
 * caller has done all work alone before the system would have run the others.
 *
 * Every caller has a team of its own, so several may call at once. A process that was forked makes new ones. */
__attribute__((visibility("hidden"))) void parallel(int64_t threads, Share *share, void *argument);

extern int64_t team_patience;

/* How many threads come to a region of at most `threads`. */
int64_t team_threads(int64_t threads);

#endif
