/* Calls kernels on a memory image and writes the image back: see native_image.py. Little-endian 64-bit machines only.
 *
 * image: number of calls, of pointers, of bytes; the places of the pointers in the bytes, which hold places in them or -1 for
 * null; calls; bytes. Names of functions are those of KERNELS, a macro of the compiler's command line. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t Kernel(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float, float);

/* `pointers` has a bit for every argument that is a place in the bytes. */
typedef struct {
    char name[40];
    int64_t arguments[8], pointers;
    float floats[2];
} Call;

/* What a commit of a path does to keys or values [planes][slots]: slots from[i] go to to[i], which are before them. */
static void copy_slots(char *stored, const int64_t *from, const int64_t *to, int64_t count, int64_t planes,
                       int64_t plane_bytes, int64_t slot_bytes) {
    for (int64_t p = 0; p < planes; p++)
        for (int64_t i = 0; i < count; i++)
            memcpy(stored + p * plane_bytes + to[i] * slot_bytes, stored + p * plane_bytes + from[i] * slot_bytes, slot_bytes);
}

/* Int8 weights that were packed without the matrix instructions of aarch64, in the order of pack_int8 for this level. */
static void order_int8(char *codes, int64_t outputs, int64_t inputs) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    for (char *end = codes + outputs * inputs, block[128]; codes < end; codes += 128) {
        memcpy(block, codes, 128);
        for (int i = 0; i < 32; i++) memcpy(codes + 8 * (i % 16) + 4 * (i / 16), block + 4 * i, 4);
    }
#endif
}

/* The same for packed groups of four bits: pack_codes. */
static void order_codes(unsigned char *groups, int64_t outputs, int64_t inputs) {
#ifdef __ARM_FEATURE_MATMUL_INT8
    for (int64_t g = 0; g < outputs * inputs / 512; g++)
        for (unsigned char *at = groups + 320 * g; at < groups + 320 * g + 256; at += 64) {
            unsigned char codes[128];
            for (int i = 0; i < 64; i++) {
                codes[8 * (i / 4) + i % 4] = at[i] & 15;
                codes[8 * (i / 4) + i % 4 + 4] = at[i] >> 4;
            }
            for (int i = 0; i < 64; i++) at[i] = codes[i] | codes[i + 64] << 4;
        }
#endif
}

#define KERNEL(name) extern Kernel name;
KERNELS
#undef KERNEL

static const struct {
    const char *name;
    Kernel *kernel;
} kernels[] = {
#define KERNEL(own) {#own, own},
    KERNELS {"copy_slots", (Kernel *)copy_slots}, {"order_int8", (Kernel *)order_int8}, {"order_codes", (Kernel *)order_codes},
};

static void *read_all(FILE *file, int64_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!memory || fread(memory, 1, bytes, file) != (size_t)bytes) exit(2);
    return memory;
}

static void run(const Call *call, char *bytes) {
    int64_t a[8];
    for (int i = 0; i < 8; i++) {
        int pointer = call->pointers >> i & 1;
        a[i] = !pointer ? call->arguments[i] : call->arguments[i] < 0 ? 0 : (int64_t)(bytes + call->arguments[i]);
    }
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
        if (!strcmp(call->name, kernels[k].name)) {
            kernels[k].kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], call->floats[0], call->floats[1]);
            return;
        }
    fprintf(stderr, "no kernel %s\n", call->name);
    exit(3);
}

int main(int count, char **names) {
    FILE *in = count == 3 ? fopen(names[1], "rb") : 0, *out = count == 3 ? fopen(names[2], "wb") : 0;
    if (!in || !out) return 1;
    int64_t *sizes = read_all(in, 24), *places = read_all(in, 8 * sizes[1]);
    Call *calls = read_all(in, sizes[0] * (int64_t)sizeof(Call));
    char *bytes = read_all(in, sizes[2]);
    for (int64_t i = 0; i < sizes[1]; i++) {
        int64_t *pointer = (int64_t *)(bytes + places[i]);
        *pointer = *pointer < 0 ? 0 : (int64_t)(bytes + *pointer);
    }
    for (int64_t i = 0; i < sizes[0]; i++) run(calls + i, bytes);
    for (int64_t i = 0; i < sizes[1]; i++) {
        int64_t *pointer = (int64_t *)(bytes + places[i]);
        *pointer = *pointer ? *pointer - (int64_t)bytes : -1;
    }
    return fwrite(bytes, 1, sizes[2], out) != (size_t)sizes[2] || fclose(out);
}
