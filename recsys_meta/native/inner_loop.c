/* MAML on an MLP of two hidden layers, one task after the other: K gradient steps on the support set in the dual form, the
 * query loss, and the gradient of that loss through all steps. Included once per precision.
 *
 * A task with support rows x_s = [e_s; u], s = 1 .. n, and G_rs = x_r . x_s starts from the shared weights. With (W, b, w, c)
 * the second layer, its bias, the last layer and its bias, and M the coefficients that move the first layer:
 *
 *     A1 = base + constant + d + G M     X1 = relu(A1)     A2 = X1 W + b     X2 = relu(A2)     score = X2 w + c + item bias
 *     r = the loss by the scores         D2 = r w^T where X2 > 0             D1 = D2 W^T where X1 > 0
 *     gradients: of M D1, of d sum D1, of W X1^T D2, of b sum D2, of w X2^T r, of c sum r
 *     v <- v - rate_v (gradient_v + pull (v - v at the start))
 *
 * The way back is the chain rule through these lines, last one first; _ marks the derivative of the query loss by something.
 * Rows are padded to a multiple of 64 bytes, with zeros, which stay zeros. What a task needs lies side by side in
 * `room`, which the second cache holds. */

#define VECTOR (REGISTER / (long)sizeof(REAL))
#define vector NAMED(vector)
#define WIDE(n) (((n) + VECTOR - 1) / VECTOR * VECTOR)

typedef REAL vector __attribute__((vector_size(REGISTER), aligned(sizeof(REAL)), may_alias));

#ifndef LOSSES
#define LOSSES
enum { SQUARED, ABSOLUTE, LOGISTIC };
enum { OF_M, OF_D, OF_W, OF_B, OF_LAST, OF_C, MOVED }; /* the order of rates */
#endif

typedef struct {
    long tasks, support, query;     /* padded sizes of the index arrays */
    long width, first, second;      /* columns of item vectors, units of the hidden layers: all padded */
    long steps;
    long loss, first_order;
    const REAL *vectors, *base, *item_bias;                       /* [I, width], [I, first], [I] */
    const int64_t *support_items, *query_items;                   /* [T, support], [T, query] */
    const uint8_t *support_mask, *query_mask;
    const REAL *support_targets, *query_targets;
    const REAL *constant, *user_square;                           /* [T, first], [T]: |u|^2 */
    const REAL *weight, *bias, *last, *last_bias;                 /* [first, second], [second], [second], [1] */
    const REAL *rates, *pulls;                                    /* [T, steps, MOVED], [steps] */
    /* Out, of a meta-loss: the mean over tasks, and its gradients, which begin as zeros. */
    REAL *value;
    REAL *_vectors, *_base, *_item_bias, *_constant, *_user_square, *_weight, *_bias, *_last, *_last_bias, *_rates, *_pulls;
    /* Out, of an adaptation: [T, support, first], [T, first], [T, first, second], [T, second], [T, second], [T]. */
    REAL *moved, *shift, *weight_out, *bias_out, *last_out, *last_bias_out;
    REAL *room;
} NAMED(episodes);

/* The weights of a task at a step, and what the step makes of the support rows. */
typedef struct {
    REAL *m, *d, *w, *w_t, *b, *last, *c;      /* [n, first], [first], [first, second], its transpose, [second], [second], [1] */
    REAL *x1, *x2, *d2, *d1, *r, *slope, *g_w; /* slope: of r by the score */
} NAMED(step);

/* c[R, N] = (add ? c : 0) + a b, with a[r, k] at a[r * by_row + k * by_k]; N a multiple of VECTOR. */
static inline __attribute__((always_inline)) void NAMED(tile)(const int rows, const int blocks, long count, const REAL *a,
                                                              long by_row, long by_k, const REAL *b, long b_row, REAL *c,
                                                              long c_row, int add)
{
    vector sums[6][BLOCKS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < blocks; v++) sums[r][v] = add ? *(const vector *)(c + r * c_row + v * VECTOR) : (vector){0};
    for (long k = 0; k < count; k++) {
        vector column[BLOCKS];
        for (int v = 0; v < blocks; v++) column[v] = *(const vector *)(b + k * b_row + v * VECTOR);
        for (int r = 0; r < rows; r++) {
            REAL factor = a[r * by_row + k * by_k];
            for (int v = 0; v < blocks; v++) sums[r][v] += factor * column[v];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < blocks; v++) *(vector *)(c + r * c_row + v * VECTOR) = sums[r][v];
}

#define TILE(rows, blocks) NAMED(tile)(rows, blocks, count, a + r * by_row, by_row, by_k, b + n, b_row, c + r * c_row + n, c_row, add)
#if BLOCKS == 4
#define STRIP(rows)                       \
    switch (blocks) {                     \
    case 4: TILE(rows, 4); break;         \
    case 3: TILE(rows, 3); break;         \
    case 2: TILE(rows, 2); break;         \
    default: TILE(rows, 1);               \
    }
#else
#define STRIP(rows)                       \
    switch (blocks) {                     \
    case 2: TILE(rows, 2); break;         \
    default: TILE(rows, 1);               \
    }
#endif

static void NAMED(product)(long rows, long count, long columns, const REAL *a, long by_row, long by_k, const REAL *b,
                           long b_row, REAL *c, long c_row, int add)
{
    for (long n = 0; n < columns; n += BLOCKS * VECTOR) {
        long blocks = (columns - n) / VECTOR < BLOCKS ? (columns - n) / VECTOR : BLOCKS, r = 0;
        for (; r + 6 <= rows; r += 6) STRIP(6)
        for (; r + 3 <= rows; r += 3) STRIP(3)
        for (; r < rows; r++) STRIP(1)
    }
}

#undef TILE
#undef STRIP

/* to[n, m] = from[m, n]^T for rows of `from_row` and `to_row`. */
static void NAMED(transpose)(long m, long n, const REAL *from, long from_row, REAL *to, long to_row)
{
    for (long i0 = 0; i0 < m; i0 += 16)
        for (long j = 0; j < n; j++)
            for (long i = i0; i < (i0 + 16 < m ? i0 + 16 : m); i++) to[j * to_row + i] = from[i * from_row + j];
}

static REAL NAMED(dot)(long n, const REAL *a, const REAL *b)
{
    vector sum = {0};
    REAL total = 0;
    for (long i = 0; i < n; i += VECTOR) sum += *(const vector *)(a + i) * *(const vector *)(b + i);
    for (int i = 0; i < VECTOR; i++) total += sum[i];
    return total;
}

/* y += a x */
static void NAMED(axpy)(long n, REAL a, const REAL *x, REAL *y)
{
    for (long i = 0; i < n; i += VECTOR) *(vector *)(y + i) += a * *(const vector *)(x + i);
}

/* out = a where x > 0, else 0 */
static void NAMED(gate)(long n, const REAL *x, const REAL *a, REAL *out)
{
    for (long i = 0; i < n; i++) out[i] = x[i] > 0 ? a[i] : 0;
}

/* out += the sum of the rows of a */
static void NAMED(add_rows)(long rows, long n, const REAL *a, REAL *out)
{
    for (long r = 0; r < rows; r++) NAMED(axpy)(n, 1, a + r * n, out);
}

/* The layers for `rows` items; x1, x2 and the scores come out. gram: [rows, n_wide] with coefficients m [n, first]. */
static void NAMED(forward)(const NAMED(episodes) *e, long rows, const int64_t *items, const REAL *constant, const NAMED(step) *at,
                           const REAL *gram, long n, long gram_row, REAL *x1, REAL *x2, REAL *scores)
{
    long first = e->first, second = e->second;
    for (long r = 0; r < rows; r++)
        for (long h = 0; h < first; h += VECTOR)
            *(vector *)(x1 + r * first + h) = *(const vector *)(e->base + items[r] * first + h) + *(const vector *)(constant + h)
                                              + *(const vector *)(at->d + h);
    if (gram) NAMED(product)(rows, n, first, gram, gram_row, 1, at->m, first, x1, first, 1);
    for (long i = 0; i < rows * first; i++) x1[i] = x1[i] <= 0 ? 0 : x1[i];
    for (long r = 0; r < rows; r++) memcpy(x2 + r * second, at->b, sizeof(REAL) * (size_t)second);
    NAMED(product)(rows, first, second, x1, first, 1, at->w, second, x2, second, 1);
    for (long i = 0; i < rows * second; i++) x2[i] = x2[i] <= 0 ? 0 : x2[i];
    for (long r = 0; r < rows; r++)
        scores[r] = NAMED(dot)(second, x2 + r * second, at->last) + at->c[0] + e->item_bias[items[r]];
}

/* r and its slope by the scores, both divided by the number of rows; the mean loss. r may be where the scores are. */
static REAL NAMED(residuals)(long loss, long rows, const REAL *scores, const REAL *targets, REAL *r, REAL *slope)
{
    REAL value = 0, share = rows ? (REAL)1 / (REAL)rows : 0;
    for (long i = 0; i < rows; i++) {
        REAL score = scores[i], gap = score - targets[i];
        if (loss == SQUARED) {
            value += gap * gap * share;
            r[i] = 2 * gap * share;
            slope[i] = 2 * share;
        } else if (loss == ABSOLUTE) {
            value += (gap < 0 ? -gap : gap) * share;
            r[i] = gap > 0 ? share : gap < 0 ? -share : gap * 0; /* NaN stays NaN */
            slope[i] = 0;
        } else {
            REAL label = targets[i] > 0, size = (REAL)exp(-(double)(score < 0 ? -score : score));
            REAL chance = score >= 0 ? 1 / (1 + size) : size / (1 + size);
            value += ((score > 0 ? score : 0) - label * score + (REAL)log1p((double)size)) * share;
            r[i] = (chance - label) * share;
            slope[i] = chance * (1 - chance) * share;
        }
    }
    return value;
}

/* v_new = v - rate (gradient + pull (v - start)); start NULL: 0. */
static void NAMED(moved)(long n, const REAL *v, const REAL *gradient, const REAL *start, REAL rate, REAL pull, REAL *v_new)
{
    for (long i = 0; i < n; i++) v_new[i] = v[i] - rate * (gradient[i] + pull * (v[i] - (start ? start[i] : 0)));
}

/* The way back through the same: _v becomes the derivative by v, _gradient that by the gradient, _start gains its part. */
static void NAMED(unmoved)(long n, const REAL *v, const REAL *gradient, const REAL *start, REAL rate, REAL pull, REAL *_v,
                           REAL *_gradient, REAL *_start, REAL *_rate, REAL *_pull)
{
    REAL by_rate = 0, by_pull = 0;
    for (long i = 0; i < n; i++) {
        REAL way = v[i] - (start ? start[i] : 0), out = _v[i];
        by_rate -= out * (gradient[i] + pull * way);
        by_pull -= rate * out * way;
        _gradient[i] = -rate * out;
        if (_start) _start[i] += rate * pull * out;
        _v[i] = out - rate * pull * out;
    }
    *_rate += by_rate;
    *_pull += by_pull;
}

static REAL *NAMED(take)(REAL **room, long n)
{
    REAL *found = *room;
    *room += WIDE(n);
    return found;
}

static void NAMED(room_of_step)(const NAMED(episodes) *e, long n, REAL **room, NAMED(step) *at)
{
    long first = e->first, second = e->second;
    at->m = NAMED(take)(room, n * first);
    at->d = NAMED(take)(room, first);
    at->w = NAMED(take)(room, first * second);
    at->w_t = NAMED(take)(room, first * second);
    at->b = NAMED(take)(room, second);
    at->last = NAMED(take)(room, second);
    at->c = NAMED(take)(room, 1);
    at->x1 = NAMED(take)(room, n * first);
    at->d1 = NAMED(take)(room, n * first);
    at->x2 = NAMED(take)(room, n * second);
    at->d2 = NAMED(take)(room, n * second);
    at->r = NAMED(take)(room, n);
    at->slope = NAMED(take)(room, n);
    at->g_w = NAMED(take)(room, first * second);
}

static long NAMED(gathered)(long n, const int64_t *items, const uint8_t *mask, const REAL *targets, int64_t *kept, REAL *wanted)
{
    long count = 0;
    for (long i = 0; i < n; i++)
        if (mask[i]) kept[count] = items[i], wanted[count++] = targets[i];
    return count;
}

/* Reals of room that a task of this batch needs at most. */
long NAMED(room)(const NAMED(episodes) *e)
{
    REAL *end = 0;
    NAMED(step) at;
    long n = e->support, q = e->query, rows = n > q ? n : q;
    for (long k = 0; k <= e->steps; k++) NAMED(room_of_step)(e, n, &end, &at);
    long of_both = (n + q) * (2 * e->width + 2 * WIDE(n)) + WIDE(n) * (e->width + e->first);
    long of_way_back = rows * 4 * (e->first + e->second) + (n + 2) * e->first + 3 * e->first * e->second + 4 * e->second;
    return (end - (REAL *)0) + of_both + of_way_back + 2 * (e->first + e->second) + 8 * (n + q) + 80 * VECTOR;
}

/* Adapts every task; with `value` the meta-loss and its gradients, with `moved` the weights after the last step. */
void NAMED(episodes_run)(const NAMED(episodes) *e)
{
    const long first = e->first, second = e->second, width = e->width, area = first * second, steps = e->steps;
    for (long t = 0; t < e->tasks; t++) {
        REAL *room = e->room;
        int64_t *items = (int64_t *)NAMED(take)(&room, (e->support + e->query) * (long)(8 / sizeof(REAL)));
        REAL *targets = NAMED(take)(&room, e->support + e->query);
        long n = NAMED(gathered)(e->support, e->support_items + t * e->support, e->support_mask + t * e->support,
                                 e->support_targets + t * e->support, items, targets);
        long q = e->value ? NAMED(gathered)(e->query, e->query_items + t * e->query, e->query_mask + t * e->query,
                                            e->query_targets + t * e->query, items + n, targets + n)
                          : 0;
        long wide = WIDE(n), count = n ? steps : 0, rows = n > q ? n : q;
        const REAL *constant = e->constant + t * first, *rates = e->rates + t * steps * MOVED;
        REAL square = e->user_square[t];

        /* Products of all rows with the support rows. A first step stands at M = 0 and needs none. */
        REAL *x = NAMED(take)(&room, (n + q) * width), *x_t = NAMED(take)(&room, width * wide);
        REAL *gram = NAMED(take)(&room, (n + q) * wide);
        if (count) {
            for (long i = 0; i < n + q; i++) memcpy(x + i * width, e->vectors + items[i] * width, sizeof(REAL) * (size_t)width);
            memset(x_t, 0, sizeof(REAL) * (size_t)(width * wide));
            NAMED(transpose)(n, width, x, width, x_t, wide);
            long from = count > 1 ? 0 : n;
            NAMED(product)(n + q - from, width, wide, x + from * width, width, 1, x_t, wide, gram + from * wide, wide, 0);
            for (long i = from; i < n + q; i++)
                for (long j = 0; j < n; j++) gram[i * wide + j] += square;
        }

        NAMED(step) at[count + 1];
        for (long k = 0; k <= count; k++) NAMED(room_of_step)(e, n, &room, at + k);
        memset(at[0].m, 0, sizeof(REAL) * (size_t)(n * first));
        memset(at[0].d, 0, sizeof(REAL) * (size_t)first);
        memcpy(at[0].w, e->weight, sizeof(REAL) * (size_t)area);
        memcpy(at[0].b, e->bias, sizeof(REAL) * (size_t)second);
        memcpy(at[0].last, e->last, sizeof(REAL) * (size_t)second);
        at[0].c[0] = e->last_bias[0];
        REAL *sum = NAMED(take)(&room, first + second), *of_last = NAMED(take)(&room, second);
        for (long k = 0; k < count; k++) {
            NAMED(step) *now = at + k, *next = now + 1;
            const REAL *rate = rates + k * MOVED, pull = e->pulls[k];
            NAMED(transpose)(first, second, now->w, second, now->w_t, first);
            NAMED(forward)(e, n, items, constant, now, k ? gram : 0, n, wide, now->x1, now->x2, now->r);
            NAMED(residuals)(e->loss, n, now->r, targets, now->r, now->slope);
            memset(of_last, 0, sizeof(REAL) * (size_t)second);
            REAL of_c = 0;
            for (long i = 0; i < n; i++) {
                NAMED(axpy)(second, now->r[i], now->x2 + i * second, of_last);
                of_c += now->r[i];
                for (long h = 0; h < second; h++)
                    now->d2[i * second + h] = now->x2[i * second + h] > 0 ? now->r[i] * now->last[h] : 0;
            }
            NAMED(product)(first, n, second, now->x1, 1, first, now->d2, second, now->g_w, second, 0);
            NAMED(product)(n, second, first, now->d2, second, 1, now->w_t, first, now->d1, first, 0);
            NAMED(gate)(n * first, now->x1, now->d1, now->d1);
            memset(sum, 0, sizeof(REAL) * (size_t)(first + second));
            NAMED(add_rows)(n, first, now->d1, sum);
            NAMED(add_rows)(n, second, now->d2, sum + first);
            NAMED(moved)(n * first, now->m, now->d1, 0, rate[OF_M], pull, next->m);
            NAMED(moved)(first, now->d, sum, 0, rate[OF_D], pull, next->d);
            NAMED(moved)(area, now->w, now->g_w, e->weight, rate[OF_W], pull, next->w);
            NAMED(moved)(second, now->b, sum + first, e->bias, rate[OF_B], pull, next->b);
            NAMED(moved)(second, now->last, of_last, e->last, rate[OF_LAST], pull, next->last);
            NAMED(moved)(1, now->c, &of_c, e->last_bias, rate[OF_C], pull, next->c);
        }
        NAMED(step) *end = at + count;
        if (e->moved) {
            REAL *out = e->moved + t * e->support * first;
            for (long i = 0, row = 0; i < e->support; i++)
                if (e->support_mask[t * e->support + i])
                    memcpy(out + i * first, end->m + row++ * first, sizeof(REAL) * (size_t)first);
            memcpy(e->shift + t * first, end->d, sizeof(REAL) * (size_t)first);
            memcpy(e->weight_out + t * area, end->w, sizeof(REAL) * (size_t)area);
            memcpy(e->bias_out + t * second, end->b, sizeof(REAL) * (size_t)second);
            memcpy(e->last_out + t * second, end->last, sizeof(REAL) * (size_t)second);
            e->last_bias_out[t] = end->c[0];
        }
        if (!e->value || !q) continue;

        /* The query loss, and the way back to the weights after the last step. */
        REAL share = (REAL)1 / (REAL)e->tasks;
        REAL *x1 = NAMED(take)(&room, rows * first), *x2 = NAMED(take)(&room, rows * second);
        REAL *_a1 = NAMED(take)(&room, rows * first), *_a2 = NAMED(take)(&room, rows * second);
        REAL *_d1 = NAMED(take)(&room, rows * first), *_d2 = NAMED(take)(&room, rows * second);
        REAL *r = NAMED(take)(&room, rows), *slope = NAMED(take)(&room, rows);
        REAL *_m = NAMED(take)(&room, n * first), *_d = NAMED(take)(&room, first), *_w = NAMED(take)(&room, area);
        REAL *_b = NAMED(take)(&room, second), *_last = NAMED(take)(&room, second), _c = 0;
        REAL *_gram = NAMED(take)(&room, (n + q) * wide), *m_t = NAMED(take)(&room, first * wide);
        REAL *_constant = e->_constant + t * first;
        const int64_t *asked = items + n;
        NAMED(forward)(e, q, asked, constant, end, count ? gram + n * wide : 0, n, wide, x1, x2, r);
        e->value[0] += share * NAMED(residuals)(e->loss, q, r, targets + n, r, slope);
        memset(_last, 0, sizeof(REAL) * (size_t)second);
        memset(_b, 0, sizeof(REAL) * (size_t)second);
        memset(_d, 0, sizeof(REAL) * (size_t)first);
        for (long i = 0; i < q; i++) {
            r[i] *= share;
            NAMED(axpy)(second, r[i], x2 + i * second, _last);
            _c += r[i];
            e->_item_bias[asked[i]] += r[i];
            for (long h = 0; h < second; h++) _a2[i * second + h] = x2[i * second + h] > 0 ? r[i] * end->last[h] : 0;
        }
        NAMED(add_rows)(q, second, _a2, _b);
        NAMED(product)(first, q, second, x1, 1, first, _a2, second, _w, second, 0);
        NAMED(transpose)(first, second, end->w, second, end->w_t, first);
        NAMED(product)(q, second, first, _a2, second, 1, end->w_t, first, _a1, first, 0);
        NAMED(gate)(q * first, x1, _a1, _a1);
        NAMED(add_rows)(q, first, _a1, _d);
        NAMED(axpy)(first, 1, _d, _constant);
        for (long i = 0; i < q; i++) NAMED(axpy)(first, 1, _a1 + i * first, e->_base + asked[i] * first);
        if (count) {
            NAMED(product)(n, q, first, gram + n * wide, 1, wide, _a1, first, _m, first, 0);
            memset(m_t, 0, sizeof(REAL) * (size_t)(first * wide));
            NAMED(transpose)(n, first, end->m, first, m_t, wide);
            memset(_gram, 0, sizeof(REAL) * (size_t)(n * wide));
            NAMED(product)(q, first, wide, _a1, first, 1, m_t, wide, _gram + n * wide, wide, 0);
        }

        /* The way back through the steps. */
        REAL *_g_w = NAMED(take)(&room, area), *_g_w_t = NAMED(take)(&room, area);
        REAL *_g_b = NAMED(take)(&room, second), *_g_d = NAMED(take)(&room, first), *_g_last = NAMED(take)(&room, second);
        for (long k = count - 1; k >= 0; k--) {
            NAMED(step) *now = at + k;
            const REAL *rate = rates + k * MOVED, pull = e->pulls[k];
            REAL *_rate = e->_rates + (t * steps + k) * MOVED, *_pull = e->_pulls + k, _g_c, of_c = 0;
            memset(sum, 0, sizeof(REAL) * (size_t)(first + second));
            memset(of_last, 0, sizeof(REAL) * (size_t)second);
            NAMED(add_rows)(n, first, now->d1, sum);
            NAMED(add_rows)(n, second, now->d2, sum + first);
            for (long i = 0; i < n; i++) {
                NAMED(axpy)(second, now->r[i], now->x2 + i * second, of_last);
                of_c += now->r[i];
            }
            NAMED(unmoved)(n * first, now->m, now->d1, 0, rate[OF_M], pull, _m, _d1, 0, _rate + OF_M, _pull);
            NAMED(unmoved)(first, now->d, sum, 0, rate[OF_D], pull, _d, _g_d, 0, _rate + OF_D, _pull);
            NAMED(unmoved)(area, now->w, now->g_w, e->weight, rate[OF_W], pull, _w, _g_w, e->_weight, _rate + OF_W, _pull);
            NAMED(unmoved)(second, now->b, sum + first, e->bias, rate[OF_B], pull, _b, _g_b, e->_bias, _rate + OF_B, _pull);
            NAMED(unmoved)(second, now->last, of_last, e->last, rate[OF_LAST], pull, _last, _g_last, e->_last, _rate + OF_LAST,
                           _pull);
            NAMED(unmoved)(1, now->c, &of_c, e->last_bias, rate[OF_C], pull, &_c, &_g_c, e->_last_bias, _rate + OF_C, _pull);
            if (e->first_order) continue;
            for (long i = 0; i < n; i++) NAMED(axpy)(first, 1, _g_d, _d1 + i * first);
            NAMED(gate)(n * first, now->x1, _d1, _d1);
            for (long i = 0; i < n; i++) memcpy(_d2 + i * second, _g_b, sizeof(REAL) * (size_t)second);
            NAMED(product)(n, first, second, now->x1, first, 1, _g_w, second, _d2, second, 1);
            NAMED(product)(n, first, second, _d1, first, 1, now->w, second, _d2, second, 1);
            NAMED(gate)(n * second, now->x2, _d2, _d2);
            NAMED(product)(first, n, second, _d1, 1, first, now->d2, second, _w, second, 1);
            for (long i = 0; i < n; i++) {
                const REAL *row = now->x2 + i * second;
                REAL _r = NAMED(dot)(second, row, _g_last) + _g_c + NAMED(dot)(second, _d2 + i * second, now->last);
                REAL _score = _r * now->slope[i];
                NAMED(axpy)(second, now->r[i], _d2 + i * second, _last);
                NAMED(axpy)(second, _score, row, _last);
                _c += _score;
                e->_item_bias[items[i]] += _score;
                for (long h = 0; h < second; h++)
                    _a2[i * second + h] = row[h] > 0 ? now->r[i] * _g_last[h] + _score * now->last[h] : 0;
            }
            NAMED(add_rows)(n, second, _a2, _b);
            NAMED(product)(first, n, second, now->x1, 1, first, _a2, second, _w, second, 1);
            NAMED(transpose)(first, second, _g_w, second, _g_w_t, first);
            NAMED(product)(n, second, first, now->d2, second, 1, _g_w_t, first, _a1, first, 0);
            NAMED(product)(n, second, first, _a2, second, 1, now->w_t, first, _a1, first, 1);
            NAMED(gate)(n * first, now->x1, _a1, _a1);
            for (long i = 0; i < n; i++) {
                NAMED(axpy)(first, 1, _a1 + i * first, e->_base + items[i] * first);
                NAMED(axpy)(first, 1, _a1 + i * first, _constant);
                NAMED(axpy)(first, 1, _a1 + i * first, _d);
            }
            if (k) {
                NAMED(product)(n, n, first, gram, wide, 1, _a1, first, _m, first, 1);
                memset(m_t, 0, sizeof(REAL) * (size_t)(first * wide));
                NAMED(transpose)(n, first, now->m, first, m_t, wide);
                NAMED(product)(n, first, wide, _a1, first, 1, m_t, wide, _gram, wide, 1);
            }
        }
        NAMED(axpy)(area, 1, _w, e->_weight);
        NAMED(axpy)(second, 1, _b, e->_bias);
        NAMED(axpy)(second, 1, _last, e->_last);
        e->_last_bias[0] += _c;
        if (!count) continue;

        /* From products to vectors: G = X X^T, of which a change's side is a constant in first order. */
        REAL *_x = NAMED(take)(&room, (n + q) * width), of_square = 0;
        long from = e->first_order ? n : 0;
        for (long i = from; i < n + q; i++)
            for (long j = 0; j < n; j++) of_square += _gram[i * wide + j];
        e->_user_square[t] += e->first_order ? of_square / 2 : of_square;
        NAMED(product)(n + q - from, n, width, _gram + from * wide, wide, 1, x, width, _x + from * width, width, 0);
        if (!e->first_order) NAMED(product)(n, n + q, width, _gram, 1, wide, x, width, _x, width, 1);
        for (long i = from; i < n + q; i++) NAMED(axpy)(width, 1, _x + i * width, e->_vectors + items[i] * width);
    }
}

#undef VECTOR
#undef vector
#undef WIDE
