/* Prints how long the kernels of quantised weights take for weights in the cache: nanoseconds of one core for 32 weights, expanded
 * to bf16 and multiplied by int8 activations, by type and rows. The shortest of many short calls is the same on a busy machine.
 *
 * gcc -O3 -ffp-contract=off -fno-math-errno -march=native -DBFLOAT16 -Isrc/orthrus/backends/native/c tests/kernel_speed.c -lm
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "gemm_codes.h"
#include "gemm_dequant.h"

enum { OUTPUTS = 32, CALLS = 400, MEMORY = 1 << 20 };

int use_amx = 0;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void *random_bytes(int mask) {
    unsigned char *bytes = aligned_alloc(64, MEMORY);
    for (int i = 0; i < MEMORY; i++) bytes[i] = (unsigned char)(rand() & mask);
    return bytes;
}

int main(void) {
    static const struct {
        const char *name;
        int64_t format;
    } types[] = {
        {"Q4_1", FORMAT_Q4},   {"Q5_0", FORMAT_Q5_0}, {"Q5_1", FORMAT_Q5_1}, {"Q8_0", FORMAT_Q8},
        {"Q4_K", FORMAT_Q4_K}, {"Q5_K", FORMAT_Q5_K}, {"Q6_K", FORMAT_Q6_K},
    };
    static const int64_t rows[] = {1, 2, 4, 8, 16};
    void *weights = random_bytes(0x3b), *x = random_bytes(0x3b), *y = random_bytes(0), *scratch = random_bytes(0);
    const QuantizedRows quantized = {random_bytes(0xff), random_bytes(0x3b), random_bytes(0x3b)};
    for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
        LinearWeights map = {.weight = weights, .inputs = is_k_quant(types[t].format) ? 1024 : 896, .outputs = OUTPUTS};
        const Range all = {0, OUTPUTS};
        for (int by_int8 = 0; by_int8 < 2; by_int8++) {
            printf("%s %s:", types[t].name, by_int8 ? "int8" : "bf16");
            map.format = types[t].format + (by_int8 ? BY_INT8 : 0);
            for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
                double shortest = 1;
                for (int call = 0; call < CALLS; call++) {
                    double start = seconds();
                    if (by_int8) gemm_codes(quantized, &map, y, rows[r], all);
                    else {
                        prepare_inputs(x, rows[r], map.inputs, scratch);
                        gemm_dequant(x, &map, y, rows[r], all, scratch);
                    }
                    double taken = seconds() - start;
                    if (taken < shortest) shortest = taken;
                }
                printf("  %ld rows %.2f", (long)rows[r], 32e9 * shortest / (double)(OUTPUTS * map.inputs));
            }
            printf("\n");
        }
    }
}
