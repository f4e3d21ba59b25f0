/* All layers of a pass in one call, by one team of threads: what happens between two products then costs a barrier instead
 * of a way back to Python. The same rows through the same functions as one by one, so the same bits. */
#if defined(IN_PARTS) && defined(__AVX512VNNI__) && defined(__AVX512BW__)

int has_stack(void) { return 1; }

/* A linear map as a row of the table: weights, bias, scales, shifts (where int8), inputs, outputs. */
enum { WEIGHT, BIAS, SCALES, SHIFTS, INPUTS, OUTPUTS, MAP };
/* A layer: attention norm, MLP norm, q and k norms of two views, then the maps: qkv and o of each view, gate_up, down. */
enum { ATTENTION_NORM, MLP_NORM, HEAD_NORMS, MAPS = HEAD_NORMS + 4, LAYER = MAPS + 6 * MAP };
/* A part: view, rows of its products (padding last), real rows, places, cos, sin, runs, count of runs, seen. */
enum { VIEW, ROWS_ALL, ROWS_REAL, PLACES, COS, SIN, RUNS, RUN_COUNT, SEEN, PART };

#define AT(field) ((const VALUE *)(uintptr_t)(field))

static void apply(const int64_t *map, const VALUE *x, VALUE *y, int64_t rows, char *memory, int64_t t, int64_t T) {
    int64_t depth = map[INPUTS], outputs = map[OUTPUTS], first, last;
    share_outputs(outputs, t, T, &first, &last);
    if (!map[SCALES]) {
        multiply(x, AT(map[WEIGHT]), AT(map[BIAS]), y, rows, depth, outputs, first, last);
        return;
    }
    float *scales = (float *)memory;
    uint8_t *q = (uint8_t *)(scales + (rows + 15) / 16 * 16);
    for (int64_t r = 0; r < rows; r++) scales[r] = quantize(x + r * depth, q + r * depth, depth);
    int64_t sizes[3] = {rows, depth, outputs};
    multiply_int8(q, scales, (const int8_t *)AT(map[WEIGHT]), (const float *)AT(map[SCALES]),
                  (const int32_t *)AT(map[SHIFTS]), AT(map[BIAS]), y, sizes, first, last);
}

/* hidden += delta where there is one, normed = its norm, for thread t's rows. */
static void norm_share(VALUE *hidden, const VALUE *delta, const VALUE *weight, VALUE *normed, int64_t rows, int64_t size,
                       float eps, int64_t t, int64_t T) {
    int64_t first, last;
    share(rows, t, T, &first, &last);
    int64_t at = first * size;
    rms_norm(hidden + at, delta ? delta + at : 0, weight, normed + at, last - first, size, eps);
}

/* Sizes of a stack, in order. */
enum { LAYERS, PARTS, ROWS_N, HIDDEN, INNER, HEADS, GROUPS, HEAD, SEQUENCE_STRIDE, HEAD_STRIDE, LAYER_STRIDE, THREADS };
enum { MOST_TOGETHER = 32 };

/* What a thread needs for itself. */
static int64_t own_bytes(const int64_t *sizes) {
    int64_t longest = sizes[HIDDEN] > sizes[INNER] ? sizes[HIDDEN] : sizes[INNER], N = sizes[ROWS_N];
    longest = longest > sizes[HEADS] * sizes[HEAD] ? longest : sizes[HEADS] * sizes[HEAD];
    int64_t rows = (N + 16) * 4 + N * longest, room = room_bytes(MOST_TOGETHER * (sizes[HEADS] / sizes[GROUPS]), sizes[HEAD]);
    return ((room > rows ? room : rows) + 127) / 64 * 64;
}

/* Bytes of memory that `stack` must be given. */
int64_t stack_bytes(const int64_t *sizes) {
    int64_t each = 2 * sizes[HIDDEN] + (3 * sizes[HEADS] + 2 * sizes[GROUPS]) * sizes[HEAD] + 3 * sizes[INNER];
    return sizes[ROWS_N] * each * (int64_t)sizeof(VALUE) + sizes[THREADS] * own_bytes(sizes);
}

/* hidden [N, D] of all parts, one after another, through all layers and the final norm to `out`. table [layers][LAYER];
 * parts [count][PART]; keys and values of the first layer and sequence. */
void stack(const int64_t *table, const int64_t *parts, VALUE *all_keys, VALUE *all_values, VALUE *hidden,
           const VALUE *final_norm, VALUE *out, char *memory, const int64_t *sizes, float eps) {
    int64_t layers = sizes[LAYERS], count = sizes[PARTS], N = sizes[ROWS_N], D = sizes[HIDDEN], inner = sizes[INNER];
    int64_t H = sizes[HEADS], G = sizes[GROUPS], E = sizes[HEAD], wide = (H + 2 * G) * E, threads = sizes[THREADS];
    const int64_t heads[5] = {H, G, E, sizes[SEQUENCE_STRIDE], sizes[HEAD_STRIDE]};
    int64_t room = own_bytes(sizes), most = MOST_TOGETHER;
    VALUE *normed = (VALUE *)(memory + threads * room), *delta = normed + N * D, *qkv = delta + N * D;
    VALUE *q = qkv + N * wide, *attended = q + N * H * E, *gated = attended + N * H * E, *both = gated + N * inner;
    memset(q, 0, 2 * N * H * E * sizeof(VALUE)); /* padding rows stay zero */
#pragma omp parallel num_threads(threads)
    {
        WHICH_THREAD
        char *own = memory + t * room;
        for (int64_t l = 0; l < layers; l++) {
            const int64_t *layer = table + l * LAYER, *maps = layer + MAPS;
            VALUE *keys = all_keys + l * sizes[LAYER_STRIDE], *cached = all_values + l * sizes[LAYER_STRIDE];
            norm_share(hidden, l ? delta : 0, AT(layer[ATTENTION_NORM]), normed, N, D, eps, t, T);
#pragma omp barrier
            for (int64_t p = 0, at = 0; p < count; at += parts[p++ * PART + ROWS_ALL]) {
                const int64_t *part = parts + p * PART;
                apply(maps + 2 * part[VIEW] * MAP, normed + at * D, qkv + at * wide, part[ROWS_ALL], own, t, T);
            }
#pragma omp barrier
            for (int64_t p = 0, at = 0; p < count; at += parts[p++ * PART + ROWS_ALL]) {
                const int64_t *part = parts + p * PART, *found = layer + HEAD_NORMS + 2 * part[VIEW];
                const VALUE *norms[2] = {AT(found[0]), AT(found[1])};
                int64_t first, last;
                share(part[ROWS_REAL], t, T, &first, &last);
                place_rows(qkv + at * wide, norms, (const float *)AT(part[COS]), (const float *)AT(part[SIN]),
                           (const int64_t *)AT(part[PLACES]), q + at * H * E, keys, cached, heads, eps, part[ROWS_REAL],
                           first, last);
            }
#pragma omp barrier
            for (int64_t p = 0, at = 0; p < count; at += parts[p++ * PART + ROWS_ALL]) {
                const int64_t *part = parts + p * PART;
                attend_share(q + at * H * E, keys, cached, attended + at * H * E, (const int64_t *)AT(part[RUNS]),
                             part[RUN_COUNT], (const int64_t *)AT(part[SEEN]), heads, own, most, t, T);
            }
#pragma omp barrier
            for (int64_t p = 0, at = 0; p < count; at += parts[p++ * PART + ROWS_ALL]) {
                const int64_t *part = parts + p * PART;
                apply(maps + (2 * part[VIEW] + 1) * MAP, attended + at * H * E, delta + at * D, part[ROWS_ALL], own, t, T);
            }
#pragma omp barrier
            norm_share(hidden, delta, AT(layer[MLP_NORM]), normed, N, D, eps, t, T);
#pragma omp barrier
            apply(maps + 4 * MAP, normed, both, N, own, t, T);
#pragma omp barrier
            int64_t first, last;
            share((inner + LANES - 1) / LANES, t, T, &first, &last);
            last = last * LANES < inner ? last * LANES : inner;
            for (int64_t n = 0; n < N; n++) gate_share(both + 2 * n * inner, gated + n * inner, inner, first * LANES, last);
#pragma omp barrier
            apply(maps + 5 * MAP, gated, delta, N, own, t, T);
#pragma omp barrier
        }
        norm_share(hidden, delta, final_norm, out, N, D, eps, t, T);
    }
}
#else
int has_stack(void) { return 0; }
#endif
