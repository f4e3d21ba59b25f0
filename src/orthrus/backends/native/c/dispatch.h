/* Calls of kernels whose number of rows is a constant, so that their sums stay in registers. */
#ifndef ORTHRUS_DISPATCH_H
#define ORTHRUS_DISPATCH_H

#include <stdint.h>

/* The size of the next group of rows, of `left` that remain: groups of about the same size, each of at most `max` rows. */
static inline int64_t next_rows(int64_t left, int64_t max) {
    int64_t groups = (left + max - 1) / max;
    return (left + groups - 1) / groups;
}

/* The same for products that take rows in pairs: all sizes but the last are even. `max` is even. */
static inline int64_t next_pairs(int64_t left, int64_t max) {
    int64_t taken = 2 * next_rows((left + 1) / 2, max / 2);
    return taken < left ? taken : left;
}

#define ROWS_CASE(n, kernel, ...)                                                                                      \
    case n:                                                                                                            \
        kernel(n, __VA_ARGS__);                                                                                        \
        break;
#define ROWS_CASES_2(...) ROWS_CASE(1, __VA_ARGS__) ROWS_CASE(2, __VA_ARGS__)
#define ROWS_CASES_3(...) ROWS_CASES_2(__VA_ARGS__) ROWS_CASE(3, __VA_ARGS__)
#define ROWS_CASES_4(...) ROWS_CASES_3(__VA_ARGS__) ROWS_CASE(4, __VA_ARGS__)
#define ROWS_CASES_6(...)                                                                                              \
    ROWS_CASES_4(__VA_ARGS__)                                                                                          \
    ROWS_CASE(5, __VA_ARGS__)                                                                                          \
    ROWS_CASE(6, __VA_ARGS__)
#define ROWS_CASES_8(...) ROWS_CASES_6(__VA_ARGS__) ROWS_CASE(7, __VA_ARGS__) ROWS_CASE(8, __VA_ARGS__)
#define ROWS_CASES_12(...)                                                                                             \
    ROWS_CASES_8(__VA_ARGS__)                                                                                          \
    ROWS_CASE(9, __VA_ARGS__)                                                                                          \
    ROWS_CASE(10, __VA_ARGS__)                                                                                         \
    ROWS_CASE(11, __VA_ARGS__)                                                                                         \
    ROWS_CASE(12, __VA_ARGS__)
#define ROWS_CASES_16(...)                                                                                             \
    ROWS_CASES_12(__VA_ARGS__)                                                                                         \
    ROWS_CASE(13, __VA_ARGS__)                                                                                         \
    ROWS_CASE(14, __VA_ARGS__)                                                                                         \
    ROWS_CASE(15, __VA_ARGS__)                                                                                         \
    ROWS_CASE(16, __VA_ARGS__)

#define ROWS_CASES(max, ...) ROWS_CASES_##max(__VA_ARGS__)

/* kernel(rows, arguments..) for 1 to `max` rows, a literal. */
#define DISPATCH_ROWS(max, rows, ...)                                                                                  \
    switch (rows) { ROWS_CASES(max, __VA_ARGS__) }

#endif
