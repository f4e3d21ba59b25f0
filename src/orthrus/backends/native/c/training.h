/* What training adds. Rows are shared out over threads; each is still computed alone. */

/* Backward of rms_norm towards x: (g w - x mean(g w x) / ms) / rms. */
void rms_norm_backward(const VALUE *x, const VALUE *weight, const VALUE *grad, VALUE *out, int64_t rows, int64_t size,
                       float eps, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        DEFAULT_FLOAT_STATE
        const VALUE *a = x + n * size, *g = grad + n * size;
        float inverse = inverse_rms(a, size, eps), lanes[LANES] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += load(g[i + l]) * load(weight[i + l]) * load(a[i + l]);
        for (int l = 0; i + l < size; l++) lanes[l] += load(g[i + l]) * load(weight[i + l]) * load(a[i + l]);
        for (int l = 0; l < LANES; l++) dot += lanes[l];
        float shrink = inverse * inverse * inverse * dot / (float)size;
        for (i = 0; i < size; i++)
            out[n * size + i] = store(load(g[i]) * load(weight[i]) * inverse - load(a[i]) * shrink);
    }
}

/* Backward of gate: x [rows, 2 size], grad [rows, size] to out [rows, 2 size]. */
void gate_backward(const VALUE *x, const VALUE *grad, VALUE *out, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++) {
        DEFAULT_FLOAT_STATE
        const VALUE *a = x + 2 * n * size;
        VALUE *to = out + 2 * n * size;
        for (int64_t i = 0; i < size; i++) {
            float g = load(a[i]), d = load(grad[n * size + i]), sigmoid = 1.0f / (1.0f + exponential(-g));
            to[i] = store(d * load(a[size + i]) * sigmoid * (1.0f + g * (1.0f - sigmoid)));
            to[size + i] = store(d * g * sigmoid);
        }
    }
}

/* Rotate x [rows, heads, size], rows `stride` values apart, to a dense `out`; `direction` -1 is the backward. */
void rotate_rows(const VALUE *x, const float *cos, const float *sin, VALUE *out, const int64_t *sizes, float direction,
                 int64_t threads) {
    int64_t rows = sizes[0], heads = sizes[1], size = sizes[2], stride = sizes[3], half = size / 2;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < rows; n++)
        for (int64_t h = 0; h < heads; h++) {
            DEFAULT_FLOAT_STATE
            const VALUE *from = x + n * stride + h * size;
            const float *c = cos + n * size, *s = sin + n * size;
            VALUE *to = out + (n * heads + h) * size;
            for (int64_t i = 0; i < half; i++) {
                float a = load(from[i]), b = load(from[i + half]);
                to[i] = store(a * c[i] + direction * b * s[i]);
                to[i + half] = store(b * c[i + half] + direction * a * s[i + half]);
            }
        }
}

/* x to exp(x - top), `top` its largest and `sum` the sum of the results; the size is a multiple of LANES. */
static inline void exponentials(float *x, int64_t size, float *top, float *sum) {
    float most[LANES], lanes[LANES] = {0};
    for (int l = 0; l < LANES; l++) most[l] = x[l];
    for (int64_t i = LANES; i < size; i += LANES)
        for (int l = 0; l < LANES; l++) most[l] = x[i + l] > most[l] ? x[i + l] : most[l];
    *top = most[0], *sum = 0;
    for (int l = 1; l < LANES; l++) *top = most[l] > *top ? most[l] : *top;
    for (int64_t i = 0; i < size; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += x[i + l] = exponential(x[i + l] - *top);
    for (int l = 0; l < LANES; l++) *sum += lanes[l];
}

/* Forward KL of each row's student from its teacher, logits [rows, size], size a multiple of LANES; the student's logits
 * become the gradient q - p. */
void forward_kl(VALUE *student, const VALUE *teacher, float *losses, int64_t rows, int64_t size, int64_t threads) {
#pragma omp parallel num_threads(threads)
    {
        float *q = malloc(2 * size * sizeof(float)), *p = q + size;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < rows; n++) {
            DEFAULT_FLOAT_STATE
            VALUE *s = student + n * size;
            const VALUE *t = teacher + n * size;
            for (int64_t i = 0; i < size; i++) q[i] = load(s[i]), p[i] = load(t[i]);
            float top_q, sum_q, top_p, sum_p, lanes[LANES] = {0}, gap = 0;
            exponentials(q, size, &top_q, &sum_q);
            exponentials(p, size, &top_p, &sum_p);
            for (int64_t i = 0; i < size; i += LANES)
                for (int l = 0; l < LANES; l++) lanes[l] += p[i + l] * (load(t[i + l]) - load(s[i + l]));
            for (int l = 0; l < LANES; l++) gap += lanes[l];
            losses[n] = gap / sum_p + (top_q + logf(sum_q)) - (top_p + logf(sum_p));
            float share_q = 1.0f / sum_q, share_p = 1.0f / sum_p;
            for (int64_t i = 0; i < size; i++) s[i] = store(q[i] * share_q - p[i] * share_p);
        }
        free(q);
    }
}

/* One softmax over two tensors in place: scores of the text before a root, of which `seen[s]` count, and of the block
 * itself. past [groups, blocks, rows, text], own [groups, blocks, rows, block]. */
void block_softmax(VALUE *past, VALUE *own, const int64_t *seen, const int64_t *sizes, float scale, int64_t threads) {
    int64_t blocks = sizes[1], rows = sizes[2], text = sizes[3], block = sizes[4];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < sizes[0] * blocks * rows; n++) {
        DEFAULT_FLOAT_STATE
        VALUE *a = past + n * text, *b = own + n * block;
        int64_t visible = seen[n / rows % blocks];
        int64_t count = (visible + block + LANES - 1) / LANES * LANES;
        float scores[text + block + LANES], top, sum;
        for (int64_t i = 0; i < visible; i++) scores[i] = load(a[i]) * scale;
        for (int64_t i = 0; i < block; i++) scores[visible + i] = load(b[i]) * scale;
        for (int64_t i = visible + block; i < count; i++) scores[i] = -INFINITY;
        exponentials(scores, count, &top, &sum);
        float share = 1.0f / sum;
        for (int64_t i = 0; i < visible; i++) a[i] = store(scores[i] * share);
        memset(a + visible, 0, (text - visible) * sizeof(VALUE));
        for (int64_t i = 0; i < block; i++) b[i] = store(scores[visible + i] * share);
    }
}

/* Its backward: gradients of the weights, in place, to gradients of the unscaled scores. */
void block_softmax_backward(const VALUE *past, const VALUE *own, VALUE *grad_past, VALUE *grad_own, const int64_t *sizes,
                            float scale, int64_t threads) {
    int64_t text = sizes[3], block = sizes[4];
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < sizes[0] * sizes[1] * sizes[2]; n++) {
        DEFAULT_FLOAT_STATE
        const VALUE *a = past + n * text, *b = own + n * block;
        VALUE *da = grad_past + n * text, *db = grad_own + n * block;
        float lanes[LANES] = {0}, dot = 0;
        int64_t i = 0;
        for (; i + LANES <= text; i += LANES)
            for (int l = 0; l < LANES; l++) lanes[l] += load(a[i + l]) * load(da[i + l]);
        for (int l = 0; i + l < text; l++) lanes[l] += load(a[i + l]) * load(da[i + l]);
        for (i = 0; i < block; i++) lanes[i % LANES] += load(b[i]) * load(db[i]);
        for (int l = 0; l < LANES; l++) dot += lanes[l];
        for (i = 0; i < text; i++) da[i] = store(load(a[i]) * (load(da[i]) - dot) * scale);
        for (i = 0; i < block; i++) db[i] = store(load(b[i]) * (load(db[i]) - dot) * scale);
    }
}
