/* Teams of threads, which sleep between parallel regions. Without OpenMP, since not every compiler has it, and since its
 * threads spin while they wait, whatever else the processor has to do. */
#include "team.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "float_state.h"
#include "threads.h"
#include "wait.h"

/* Bytes of a stack: room for the arrays that kernels keep there; some systems give a thread much less. */
enum { STACK_BYTES = 8 << 20, CACHE_LINE = 64 };

/* After so many regions in a row that not all came to, the caller works alone for so many times the patience: 20 ms. */
enum { LATE_REGIONS = 2, ALONE_PATIENCES = 25 };

/* Far longer than a thread takes to wake on an idle processor, which is 50 us, since a long pass done alone costs more. */
int64_t team_patience = 800000;

#if defined(__linux__)
void sleep_while_equal(_Atomic uint32_t *value, uint32_t old) {
    syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

void wake_sleepers(_Atomic uint32_t *value, int64_t count) {
    syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, (int)count, NULL, NULL, 0);
}

static void lock_sleepers(void) {}
static void unlock_sleepers(void) {}
static void forget_sleepers(void) {}
#else
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t some_value_changed = PTHREAD_COND_INITIALIZER;

void sleep_while_equal(_Atomic uint32_t *value, uint32_t old) {
    pthread_mutex_lock(&sleep_lock);
    if (atomic_load(value) == old) pthread_cond_wait(&some_value_changed, &sleep_lock);
    pthread_mutex_unlock(&sleep_lock);
}

void wake_sleepers(_Atomic uint32_t *value, int64_t count) {
    (void)value, (void)count;
    pthread_mutex_lock(&sleep_lock);
    pthread_cond_broadcast(&some_value_changed);
    pthread_mutex_unlock(&sleep_lock);
}

static void lock_sleepers(void) { pthread_mutex_lock(&sleep_lock); }
static void unlock_sleepers(void) { pthread_mutex_unlock(&sleep_lock); }

/* The lock and the sleepers of a forked process are those of threads that it does not have. */
static void forget_sleepers(void) {
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&some_value_changed, NULL);
}
#endif

/* The value of `open` holds the number of the region, and below it the places that workers may still take. */
enum { NEXT_REGION = 1 << 12, PLACES = NEXT_REGION - 1 };

/* A caller and its workers. Workers wait for an `open` region, take a place, and wait until the region has `started`: no
 * more places are taken, and `count` is how many threads there are. The last of the `running` workers changes `finished`.
 * `next` is a free team. */
typedef struct Team {
    Signal open, started, finished;
    _Atomic int64_t running;
    Share *share;
    void *argument;
    int64_t workers, wanted, count, late, alone_until;
    struct Team *next;
} Team;

static pthread_mutex_t free_lock = PTHREAD_MUTEX_INITIALIZER;
static Team *free_teams = NULL;

static void run_share(const Team *team, int64_t index) {
    SCOPED_FLOAT_STATE caller = set_default_float_state();
    team->share(team->argument, (Thread){index, team->count});
}

static void *work(void *argument) {
    Team *team = argument;
    for (uint32_t open = 0;;) {
        if (!(open & PLACES)) open = signal_wait(&team->open, open);
        else if (atomic_compare_exchange_weak(&team->open.value, &open, open - 1)) {
            uint32_t closed = open & ~(uint32_t)PLACES, finished = atomic_load(&team->finished.value);
            signal_wait(&team->started, closed - NEXT_REGION);
            run_share(team, team->wanted - (open & PLACES));
            if (atomic_fetch_sub(&team->running, 1) == 1) signal_set(&team->finished, finished + 1, 1);
            open = closed;
        }
    }
    return NULL;
}

/* Starts a worker of a team. Returns whether the system gave one. */
static int add_worker(Team *team) {
    pthread_t thread;
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return 0;
    int started = !pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) &&
                  !pthread_attr_setstacksize(&attributes, STACK_BYTES) &&
                  !pthread_create(&thread, &attributes, work, team);
    pthread_attr_destroy(&attributes);
    team->workers += started;
    return started;
}

/* A forked process has the teams of its parent, but not their threads. */
static void before_fork(void) {
    pthread_mutex_lock(&free_lock);
    lock_sleepers();
}

static void after_fork(void) {
    unlock_sleepers();
    pthread_mutex_unlock(&free_lock);
}

static void after_fork_in_child(void) {
    forget_sleepers();
    free_teams = NULL;
    pthread_mutex_unlock(&free_lock);
}

static void watch_forks(void) { pthread_atfork(before_fork, after_fork, after_fork_in_child); }

/* A team that no one uses, or a new one; NULL without memory. */
static Team *take_team(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&free_lock);
    Team *team = free_teams;
    if (team) free_teams = team->next;
    pthread_mutex_unlock(&free_lock);
    return team ? team : calloc(1, sizeof(Team));
}

static void give_back(Team *team) {
    pthread_mutex_lock(&free_lock);
    team->next = free_teams;
    free_teams = team;
    pthread_mutex_unlock(&free_lock);
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Waits until all places of the open region are taken, or until the patience ends. Returns how many are left. */
static int64_t close_region(Team *team) {
    int64_t begin = nanoseconds();
    while (atomic_load(&team->open.value) & PLACES && nanoseconds() - begin < team_patience)
        for (int spins = 0; spins < 4; spins++) spin_pause();
    return atomic_fetch_and(&team->open.value, ~(uint32_t)PLACES) & PLACES;
}

static void run_region(Team *team, Share *share, void *argument) {
    uint32_t closed = atomic_load(&team->open.value) + NEXT_REGION, finished = atomic_load(&team->finished.value);
    team->share = share, team->argument = argument;
    signal_set(&team->open, closed | (uint32_t)(team->wanted - 1), team->wanted - 1);
    team->count = team->wanted - close_region(team);
    team->late = team->count < team->wanted ? team->late + 1 : 0;
    if (team->late >= LATE_REGIONS) team->alone_until = nanoseconds() + ALONE_PATIENCES * team_patience;
    atomic_store(&team->running, team->count - 1);
    signal_set(&team->started, closed, team->count - 1);
    run_share(team, 0);
    if (team->count > 1) signal_wait(&team->finished, finished);
}

void parallel(int64_t threads, Share *share, void *argument) {
    Team *team = threads > 1 ? take_team() : NULL;
    if (team && nanoseconds() >= team->alone_until) {
        int64_t most = threads - 1 < PLACES ? threads - 1 : PLACES;
        while (team->workers < most && add_worker(team)) {}
        team->wanted = 1 + (team->workers < most ? team->workers : most);
        run_region(team, share, argument);
    } else run_share(&(Team){.share = share, .argument = argument, .count = 1}, 0);
    if (team) give_back(team);
}

static void count_threads(void *argument, Thread thread) {
    if (thread.index == 0) *(int64_t *)argument = thread.count;
}

int64_t team_threads(int64_t threads) {
    int64_t count;
    parallel(threads, count_threads, &count);
    return count;
}
