/* What a library has once, whatever the number of its translation units: whether it uses tiles, and the product of weights
 * of its own scalar type as a function. */
#ifndef ORTHRUS_LIBRARY_H
#define ORTHRUS_LIBRARY_H

#include <stdint.h>

#include "amx.h"
#include "gemm.h"
#include "linear_weights.h"
#include "simd.h"
#include "team.h"
#include "threads.h"

int use_amx = 0;

#ifdef HAVE_AMX
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };

/* Requests tiles from the kernel, and uses them where it grants them. */
int has_amx(void) { return use_amx = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0; }
#else
int has_amx(void) { return 0; }
#endif

/* See gemm_bf16.h and gemm_f32.h. */
int64_t k_interleave(int64_t depth) { return interleave_of(depth); }

typedef struct {
    const scalar_t *x;
    const LinearWeights *w;
    scalar_t *y;
    int64_t rows;
} LinearCall;

static void linear_call_share(void *argument, Thread thread) {
    const LinearCall *call = argument;
    gemm(call->x, call->w, call->y, call->rows, split_outputs(call->w->outputs, thread));
}

/* y [rows, outputs] = x [rows, inputs] w^T + bias */
void linear(const scalar_t *x, const LinearWeights *w, scalar_t *y, int64_t rows, int64_t threads) {
    parallel(threads, linear_call_share, &(LinearCall){x, w, y, rows});
}

#endif
