/* A whole pass in one call, from tokens to logits, by one team of threads: what happens between two products then costs a
 * barrier instead of a way back to Python. The same rows through the same functions as one by one, so the same bits. */
#if defined(IN_PARTS) && defined(__AVX512VNNI__) && defined(__AVX512BW__)

int has_stack(void) { return 1; }

/* A linear map as a row of the table: weights, bias, scales, shifts (where int8), inputs, outputs, how it is stored. */
enum { WEIGHT, BIAS, SCALES, SHIFTS, INPUTS, OUTPUTS, FORM, MAP };
/* A layer: attention norm, MLP norm, q and k norms of two views, then the maps: qkv and o of each view, gate_up, down. */
enum { ATTENTION_NORM, MLP_NORM, HEAD_NORMS, MAPS = HEAD_NORMS + 4, LAYER = MAPS + 6 * MAP };
/* A part: view, rows of its products (padding last), real rows, tokens, places, positions, runs, count of runs, seen. */
enum { VIEW, ROWS_ALL, ROWS_REAL, TOKENS, PLACES, POSITIONS, RUNS, RUN_COUNT, SEEN, PART };
/* What all passes share: embedding [vocabulary, D], cos and signed sin [positions, E], the final norm. */
enum { EMBEDDING, COS, SIN, FINAL_NORM };

#define AT(field) ((const VALUE *)(uintptr_t)(field))

/* Rows in int8, for the maps that want them so. */
typedef struct {
    uint8_t *q;
    float *scales, *sums;
} Quantized;

/* Rows `first` to `last` of x [.., depth] for a map that wants them in int8. */
static void quantize_for(const int64_t *map, const VALUE *x, Quantized to, int64_t first, int64_t last) {
    int64_t depth = map[INPUTS];
    if (map[FORM] == INT8)
        for (int64_t r = first; r < last; r++) to.scales[r] = quantize(x + r * depth, to.q + r * depth, depth);
    else if (map[FORM] == GROUPED)
        for (int64_t r = first; r < last; r++)
            to.scales[r] = quantize_groups(x + r * depth, (int8_t *)to.q + r * depth, to.sums + r * depth / GROUP, depth);
}

/* Outputs `first` to `last` of a map, for `rows` rows from row `at`; `own` is the thread's room. */
static void apply(const int64_t *map, const VALUE *x, Quantized from, VALUE *y, int64_t at, int64_t rows, int64_t first,
                  int64_t last, char *own) {
    int64_t depth = map[INPUTS], outputs = map[OUTPUTS], sizes[3] = {rows, depth, outputs};
    x += at * depth, y += at * outputs;
    if (map[FORM] == PLAIN) multiply(x, AT(map[WEIGHT]), AT(map[BIAS]), y, rows, depth, outputs, first, last);
    else if (map[FORM] == INT8)
        multiply_int8(from.q + at * depth, from.scales + at, (const int8_t *)AT(map[WEIGHT]),
                      (const float *)AT(map[SCALES]), (const int32_t *)AT(map[SHIFTS]), AT(map[BIAS]), y, sizes, first, last);
    else if (map[FORM] == GROUPED)
        multiply_grouped((const int8_t *)from.q + at * depth, from.sums + at * depth / GROUP, from.scales + at,
                         (const char *)AT(map[WEIGHT]), AT(map[BIAS]), y, sizes, first, last);
    else {
        multiply_blocks(map[FORM], x, (const char *)AT(map[WEIGHT]), AT(map[BIAS]), y, rows, depth, outputs, first, last,
                        (VALUE *)own);
    }
}

/* Thread t's outputs of it. */
static void apply_share(const int64_t *map, const VALUE *x, Quantized from, VALUE *y, int64_t at, int64_t rows, char *own,
                        int64_t t, int64_t T) {
    int64_t first, last;
    share_outputs(map[OUTPUTS], t, T, &first, &last);
    apply(map, x, from, y, at, rows, first, last, own);
}

/* Thread t's share of gated activations, from its own outputs of both halves of `both`. */
static void gate_up_share(const int64_t *map, const VALUE *x, Quantized from, VALUE *both, VALUE *gated, int64_t rows,
                          char *own, int64_t t, int64_t T) {
    int64_t size = map[OUTPUTS] / 2, first, last;
    share_outputs(size, t, T, &first, &last);
    apply(map, x, from, both, 0, rows, first, last, own);
    apply(map, x, from, both, 0, rows, size + first, size + last, own);
    for (int64_t n = 0; n < rows; n++) gate_row(both + 2 * n * size, gated + n * size, size, first, last);
}

/* Sizes of a stack, in order. */
enum {
    LAYERS, PARTS, ROWS_N, PICKED, WANTED, HIDDEN, INNER, HEADS, GROUPS, HEAD, SEQUENCE_STRIDE, HEAD_STRIDE, LAYER_STRIDE,
    THREADS
};
enum { MOST_TOGETHER = 32 };

static int64_t longest_row(const int64_t *sizes) {
    int64_t heads = sizes[HEADS] * sizes[HEAD], longest = sizes[HIDDEN] > sizes[INNER] ? sizes[HIDDEN] : sizes[INNER];
    return longest > heads ? longest : heads;
}

/* What a thread needs for itself, in attention or in products. */
static int64_t own_bytes(const int64_t *sizes) {
    int64_t attention = room_bytes(MOST_TOGETHER * (sizes[HEADS] / sizes[GROUPS]), sizes[HEAD]);
    int64_t products = ROOM(longest_row(sizes)) * (int64_t)sizeof(VALUE);
    return ((attention > products ? attention : products) + 127) / 64 * 64;
}

/* Bytes of memory that `stack` must be given. */
int64_t stack_bytes(const int64_t *sizes) {
    int64_t each = 3 * sizes[HIDDEN] + (3 * sizes[HEADS] + 2 * sizes[GROUPS]) * sizes[HEAD] + 3 * sizes[INNER];
    int64_t longest = longest_row(sizes);
    int64_t row = each * (int64_t)sizeof(VALUE) + longest + (1 + longest / GROUP) * (int64_t)sizeof(float);
    return sizes[ROWS_N] * row + sizes[THREADS] * own_bytes(sizes);
}

/* What time goes to, as `clocks` counts it. */
enum { NORMS, QKV, ROTATION, ATTENTION, O, GATE_UP, DOWN, LOGITS, WORKS };

/* Where the threads of a team wait for one another. */
typedef struct {
    _Atomic int64_t waiting, round;
} Meeting;
enum { PATIENCE = 1000 };

/* Nobody goes on before all T are here. Who has waited longer than it ever takes where each has a processor lets others run:
 * OpenMP's own barrier spins on, and beside another program a pass takes fifty times as long. */
static inline void meet(Meeting *at, int64_t T) {
    int64_t round = atomic_load_explicit(&at->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&at->waiting, 1, memory_order_acq_rel) == T - 1) {
        atomic_store_explicit(&at->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&at->round, round + 1, memory_order_release);
        return;
    }
    for (int turns = 0; atomic_load_explicit(&at->round, memory_order_acquire) == round; turns++)
        if (turns < PATIENCE) _mm_pause();
        else sched_yield();
}

/* What a thread knows of its team: where it meets, which of how many it is, and the time of the last meeting. */
typedef struct {
    Meeting *meeting;
    double *clocks, last;
    int64_t t, T;
} Team;

/* All threads are done with one kind of work: seconds since the last go to it, where somebody asks. */
static inline void done(Team *team, int work) {
    meet(team->meeting, team->T);
    if (!team->clocks || team->t) return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    if (work < WORKS) team->clocks[work] += seconds - team->last;
    team->last = seconds;
}

/* What of a part's rows lies in a thread's. */
static void quantize_own(const int64_t *map, const VALUE *x, Quantized to, const int64_t *part, int64_t at, int64_t first,
                         int64_t last) {
    int64_t end = at + part[ROWS_ALL];
    quantize_for(map, x, to, first > at ? first : at, last < end ? last : end);
}

/* Thread t's rows of a part: their keys and values to the cache, their rotated queries to q. */
static void place_share(const VALUE *qkv, const int64_t *layer, const int64_t *part, const int64_t *shared, VALUE *q,
                        VALUE *keys, VALUE *cached, const int64_t *heads, float eps, int64_t t, int64_t T) {
    const int64_t *found = layer + HEAD_NORMS + 2 * part[VIEW];
    const VALUE *norms[2] = {AT(found[0]), AT(found[1])};
    int64_t first, last;
    share(part[ROWS_REAL], t, T, &first, &last);
    place_rows(qkv, norms, (const float *)AT(shared[COS]), (const float *)AT(shared[SIN]), (const int64_t *)AT(part[POSITIONS]),
               (const int64_t *)AT(part[PLACES]), q, keys, cached, heads, eps, part[ROWS_REAL], first, last);
}

/* What of a part's rows, whose first is `at`, lies in a thread's: their embeddings. */
static void embed_own(const int64_t *part, const VALUE *embedding, VALUE *hidden, int64_t D, int64_t at, int64_t first,
                      int64_t last) {
    const int64_t *tokens = (const int64_t *)AT(part[TOKENS]);
    for (int64_t r = first > at ? first : at; r < last && r < at + part[ROWS_ALL]; r++)
        memcpy(hidden + r * D, embedding + tokens[r - at] * D, D * sizeof(VALUE));
}

/* Each part in turn, its first row `at`, with the maps of its view. */
#define EVERY_PART                                                                                                     \
    for (p = 0, at = 0; part = parts + p * PART, of_view = maps + 2 * part[VIEW] * MAP, p < count; at += part[ROWS_ALL], p++)

/* The rows of all parts, one after another, through all layers; of those `picked`, the final norms go to `out` and the
 * logits of the first of them to `logits`. table [layers][LAYER], then the map of the head; parts [count][PART]; keys and
 * values of the first layer and sequence; `clocks` [WORKS] or nothing. */
void stack(const int64_t *table, const int64_t *shared, const int64_t *parts, const int64_t *picked, VALUE *all_keys,
           VALUE *all_values, VALUE *out, VALUE *logits, char *memory, double *clocks, const int64_t *sizes, float eps) {
    const VALUE *final_norm = AT(shared[FINAL_NORM]);
    const int64_t *head = table + sizes[LAYERS] * LAYER;
    int64_t layers = sizes[LAYERS], count = sizes[PARTS], N = sizes[ROWS_N], D = sizes[HIDDEN], inner = sizes[INNER];
    int64_t H = sizes[HEADS], G = sizes[GROUPS], E = sizes[HEAD], wide = (H + 2 * G) * E, threads = sizes[THREADS];
    const int64_t heads[5] = {H, G, E, sizes[SEQUENCE_STRIDE], sizes[HEAD_STRIDE]};
    int64_t room = own_bytes(sizes), most = MOST_TOGETHER;
    VALUE *hidden = (VALUE *)(memory + threads * room), *normed = hidden + N * D, *delta = normed + N * D;
    VALUE *qkv = delta + N * D;
    VALUE *q = qkv + N * wide, *attended = q + N * H * E, *gated = attended + N * H * E, *both = gated + N * inner;
    Quantized in_int8 = {(uint8_t *)(both + 2 * N * inner), 0, 0};
    in_int8.scales = (float *)(in_int8.q + N * longest_row(sizes)), in_int8.sums = in_int8.scales + N;
    memset(q, 0, 2 * N * H * E * sizeof(VALUE)); /* padding rows stay zero */
    Meeting meeting = {0, 0};
#pragma omp parallel num_threads(threads)
    {
        WHICH_THREAD
        char *own = memory + t * room;
        Team team = {&meeting, clocks, 0, t, T};
        done(&team, WORKS);
        int64_t first, end; /* this thread's rows, where every row is a thread's */
        share(N, t, T, &first, &end);
        int64_t p, at;
        const int64_t *maps = table + MAPS, *of_view, *part;
        EVERY_PART embed_own(part, AT(shared[EMBEDDING]), hidden, D, at, first, end);
        for (int64_t l = 0; l < layers; l++) {
            const int64_t *layer = table + l * LAYER;
            maps = layer + MAPS;
            VALUE *keys = all_keys + l * sizes[LAYER_STRIDE], *cached = all_values + l * sizes[LAYER_STRIDE];
            rms_norm(hidden + first * D, l ? delta + first * D : 0, AT(layer[ATTENTION_NORM]), normed + first * D,
                     end - first, D, eps);
            EVERY_PART quantize_own(of_view, normed, in_int8, part, at, first, end);
            done(&team, NORMS);
            EVERY_PART apply_share(of_view, normed, in_int8, qkv, at, part[ROWS_ALL], own, t, T);
            done(&team, QKV);
            EVERY_PART place_share(qkv + at * wide, layer, part, shared, q + at * H * E, keys, cached, heads, eps, t, T);
            done(&team, ROTATION);
            EVERY_PART attend_share(q + at * H * E, keys, cached, attended + at * H * E, (const int64_t *)AT(part[RUNS]),
                                    part[RUN_COUNT], (const int64_t *)AT(part[SEEN]), heads, own, most, t, T);
            done(&team, ATTENTION);
            EVERY_PART quantize_own(of_view + MAP, attended, in_int8, part, at, first, end);
            done(&team, O);
            EVERY_PART apply_share(of_view + MAP, attended, in_int8, delta, at, part[ROWS_ALL], own, t, T);
            done(&team, O);
            rms_norm(hidden + first * D, delta + first * D, AT(layer[MLP_NORM]), normed + first * D, end - first, D, eps);
            quantize_for(maps + 4 * MAP, normed, in_int8, first, end);
            done(&team, NORMS);
            gate_up_share(maps + 4 * MAP, normed, in_int8, both, gated, N, own, t, T);
            done(&team, GATE_UP);
            if (maps[5 * MAP + FORM] == INT8 || maps[5 * MAP + FORM] == GROUPED) {
                quantize_for(maps + 5 * MAP, gated, in_int8, first, end);
                done(&team, DOWN);
            }
            apply_share(maps + 5 * MAP, gated, in_int8, delta, 0, N, own, t, T);
            done(&team, DOWN);
        }
        share(sizes[PICKED], t, T, &first, &end);
        for (int64_t n = first; n < end; n++)
            rms_norm(hidden + picked[n] * D, delta + picked[n] * D, final_norm, out + n * D, 1, D, eps);
        quantize_for(head, out, in_int8, first, end < sizes[WANTED] ? end : sizes[WANTED]);
        done(&team, NORMS);
        apply_share(head, out, in_int8, logits, 0, sizes[WANTED], own, t, T);
        done(&team, LOGITS);
    }
}
#undef EVERY_PART
#else
int has_stack(void) { return 0; }
#endif
