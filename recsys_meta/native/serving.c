/* The two loops of serving that torch cannot keep in the cache: an MLP over a catalogue, and the best of a row of scores.
 * Some items by some units stay in registers through a layer, and what lies between two layers in the nearest cache.
 *
 * Letters: T users, N items, H units of a layer. Widths are padded to a multiple of LANES by the caller, with zeros.
 * Everything is float32; what is computed of an item depends on neither its neighbours nor the number of items.
 */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES (REGISTER / 4)
#define ROWS 6 /* items at a time */
#define SCANNED 64 /* scores looked at together */
#define MAX_WIDTH 1024

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t bits __attribute__((vector_size(4 * LANES)));

#define INLINE static inline __attribute__((always_inline))

/* sums[r][c] += sum over k of a[k][r] * b[k * width + c], for `rows` items and `blocks` x LANES columns from b on.
 * a: K pointers, or, without pointers, one matrix of rows of `stride`, of which a[k][r] is direct[r * stride + k]. */
INLINE void products(const int rows, const int blocks, long count, const float *const *a, const float *direct, long stride,
                     const float *b, long width, lanes sums[ROWS][BLOCKS])
{
    lanes local[ROWS][BLOCKS]; /* in registers */
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < blocks; c++) local[r][c] = sums[r][c];
    for (long k = 0; k < count; k++) {
        lanes column[BLOCKS];
        for (int c = 0; c < blocks; c++) column[c] = *(const lanes *)(b + k * width + c * LANES);
        for (int r = 0; r < rows; r++) {
            float factor = a ? a[k][r] : direct[r * stride + k];
            for (int c = 0; c < blocks; c++) local[r][c] += factor * column[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < blocks; c++) sums[r][c] = local[r][c];
}

INLINE lanes relu(lanes x)
{
    lanes zero = {0};
    bits kept = ~(x <= zero); /* NaN is kept: seen, not hidden */
    return (lanes)(kept & (bits)x);
}

/* One layer for `rows` items: out[r * width + c] = relu(start + products). */
INLINE void layer(int rows, long count, const float *const *a, const float *direct, long stride, const float *b,
                  const float *base, long base_stride, const float *constant, float *out, long width)
{
    for (long left = width / LANES, c0 = 0; left > 0;) {
        int blocks = left >= BLOCKS ? BLOCKS : (int)left;
        lanes sums[ROWS][BLOCKS];
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < blocks; c++) {
                long place = c0 + c * LANES;
                sums[r][c] = *(const lanes *)(constant + place);
                if (base) sums[r][c] += *(const lanes *)(base + r * base_stride + place);
            }
        const float *const *shifted = a;
        switch (blocks) {
#if BLOCKS == 4
        case 4: products(rows, 4, count, shifted, direct, stride, b + c0, width, sums); break;
        case 3: products(rows, 3, count, shifted, direct, stride, b + c0, width, sums); break;
#endif
        case 2: products(rows, 2, count, shifted, direct, stride, b + c0, width, sums); break;
        default: products(rows, 1, count, shifted, direct, stride, b + c0, width, sums);
        }
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < blocks; c++) *(lanes *)(out + r * width + c0 + c * LANES) = relu(sums[r][c]);
        left -= blocks;
        c0 += blocks * LANES;
    }
}

typedef struct {
    long depth;                 /* hidden layers, 1 at least */
    const long *widths;         /* [depth] units of each, padded */
    const float *base;          /* [N, widths[0]] the first layer as shared by all users; NULL: nothing is shared */
    const float *rows;          /* [M, N] what the first layer of a user is a sum over */
    const int64_t *places;      /* [P] which of them */
    const int64_t *offsets;     /* [T + 1] into places and moves */
    const float *moves;         /* [P, widths[0]] their coefficients */
    const float *const *weights; /* [depth - 1] of [T, widths[n - 1], widths[n]] */
    const float *const *biases; /* [depth] of [T, widths[n]] */
    const float *final;         /* [T, widths[depth - 1]] */
    const float *final_bias;    /* [T] */
    const float *item_bias;     /* [N] */
    const uint32_t *halves;     /* [T, widths[0] / 2, widths[1]] weights[0] in bf16, two rows in one; NULL: score all exactly */
    const float *reach;         /* [T, widths[0]] how far a score moves at most with each output of the first layer */
    const float *blur;          /* [T, widths[0]] and how far by what `halves` leaves out */
    const float *size;          /* [T] what else stands in the sums of a score */
    const float *least;         /* [T] scores below do not count */
    float *scores;              /* [T, N] with a stride of `stride` */
    long users, items, rows_stride, stride;
} network;

/* final . hidden for each row. */
INLINE void outputs(int rows, const network *net, long t, long i, const float *hidden, float *scores)
{
    long width = net->widths[net->depth - 1];
    const float *final = net->final + t * width;
    for (int r = 0; r < rows; r++) {
        lanes sum = {0};
        for (long c = 0; c < width; c += LANES) sum += *(const lanes *)(hidden + r * width + c) * *(const lanes *)(final + c);
        float score = net->item_bias[i + r] + net->final_bias[t];
        for (int c = 0; c < LANES; c++) score += sum[c];
        scores[r] = score;
    }
}

/* The layers behind the first, and the scores. */
INLINE void upper(int rows, const network *net, long t, long i, float hidden[2][ROWS * MAX_WIDTH], float *scores)
{
    const long *widths = net->widths;
    for (long n = 1; n < net->depth; n++)
        layer(rows, widths[n - 1], 0, hidden[(n - 1) & 1], widths[n - 1],
              net->weights[n - 1] + t * widths[n - 1] * widths[n], 0, 0, net->biases[n] + t * widths[n], hidden[n & 1], widths[n]);
    outputs(rows, net, t, i, hidden[(net->depth - 1) & 1], scores);
}

#ifdef __AVX512BF16__
#include <immintrin.h>

/* Which of ROWS items may score `least` or more, as bits: two hidden layers, the second one in bf16.
 *
 * With ^ for what bf16 makes of a number, x . w - x^ . w^ = (x - x^) . w + x^ . (w - w^). Both differences are known, and a
 * score moves by no more than |final_h| times what unit h does, so by no more than |x - x^| . reach + |x^| . blur, where
 * reach_k = sum_h |final_h w_hk| and blur_k = sum_h |final_h (w_hk - w^_hk)|. SUMS covers the rounding of float32 sums of up to
 * 1,024 terms, on both sides. */
#define SUMS 0.0002f

static unsigned contenders(const network *net, long t, long i, const float *x)
{
    const long *widths = net->widths;
    uint32_t pairs[ROWS][MAX_WIDTH / 2] __attribute__((aligned(64)));
    float slack[ROWS], upper[ROWS * MAX_WIDTH] __attribute__((aligned(64))), scores[ROWS];
    const float *reach = net->reach + t * widths[0], *blur = net->blur + t * widths[0];
    for (int r = 0; r < ROWS; r++) {
        __m512 sum = _mm512_setzero_ps(), moved = _mm512_setzero_ps();
        for (long k = 0; k < widths[0]; k += LANES) {
            __m512 some = _mm512_loadu_ps(x + r * widths[0] + k), far = _mm512_loadu_ps(reach + k);
            __m256i half = (__m256i)_mm512_cvtneps_pbh(some);
            __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
            _mm256_store_si256((__m256i *)(pairs[r] + k / 2), half);
            moved = _mm512_fmadd_ps(_mm512_abs_ps(_mm512_sub_ps(some, back)), far, moved);
            moved = _mm512_fmadd_ps(_mm512_abs_ps(back), _mm512_loadu_ps(blur + k), moved);
            sum = _mm512_fmadd_ps(_mm512_abs_ps(some), far, sum);
        }
        slack[r] = 1.001f * _mm512_reduce_add_ps(moved) + SUMS * _mm512_reduce_add_ps(sum);
    }
    const uint32_t *halves = net->halves + t * widths[0] / 2 * widths[1];
    const float *bias = net->biases[1] + t * widths[1];
    for (long c0 = 0; c0 < widths[1]; c0 += 4 * LANES) {
        int blocks = widths[1] - c0 >= 4 * LANES ? 4 : (int)((widths[1] - c0) / LANES);
        __m512 sums[ROWS][4];
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < 4; c++) sums[r][c] = _mm512_loadu_ps(bias + c0 + (c < blocks ? c : 0) * LANES);
        for (long k = 0; k < widths[0] / 2; k++) {
            __m512bh column[4];
            for (int c = 0; c < 4; c++)
                column[c] = (__m512bh)_mm512_loadu_si512(halves + k * widths[1] + c0 + (c < blocks ? c : 0) * LANES);
            for (int r = 0; r < ROWS; r++) {
                __m512bh factor = (__m512bh)_mm512_set1_epi32((int)pairs[r][k]);
                for (int c = 0; c < 4; c++) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], factor, column[c]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < blocks; c++) *(lanes *)(upper + r * widths[1] + c0 + c * LANES) = relu((lanes)sums[r][c]);
    }
    outputs(ROWS, net, t, i, upper, scores);
    unsigned found = 0;
    for (int r = 0; r < ROWS; r++) {
        float most = scores[r] + slack[r] + SUMS * (net->size[t] + fabsf(net->item_bias[i + r]));
        found |= (unsigned)!(most < net->least[t]) << r; /* NaN contends: it is to be seen */
    }
    return found;
}

int prefilters(void) { return 1; }
#else
static unsigned contenders(const network *net, long t, long i, const float *x)
{
    (void)net, (void)t, (void)i, (void)x;
    return (1u << ROWS) - 1;
}

int prefilters(void) { return 0; }
#endif

INLINE void panel(int rows, const network *net, long t, long i, const float **pointers)
{
    float hidden[2][ROWS * MAX_WIDTH] __attribute__((aligned(64)));
    long width = net->widths[0], first = net->offsets[t], count = net->offsets[t + 1] - first;
    float *scores = net->scores + t * net->stride + i;
    for (long k = 0; k < count; k++) pointers[k] = net->rows + net->places[first + k] * net->rows_stride + i;
    layer(rows, count, pointers, 0, 0, net->moves + first * width, net->base ? net->base + i * width : 0, width,
          net->biases[0] + t * width, hidden[0], width);
    if (rows == ROWS && net->halves) {
        unsigned found = contenders(net, t, i, hidden[0]);
        if (found != (1u << ROWS) - 1) {
            float one[2][ROWS * MAX_WIDTH] __attribute__((aligned(64)));
            for (int r = 0; r < ROWS; r++) {
                scores[r] = -FLT_MAX;
                if (!(found >> r & 1)) continue;
                memcpy(one[0], hidden[0] + r * width, sizeof(float) * (size_t)width);
                upper(1, net, t, i + r, one, scores + r);
            }
            return;
        }
    }
    upper(rows, net, t, i, hidden, scores);
}

/* pointers: room for as many as the longest user has places. */
void mlp_scores(const network *net, const float **pointers)
{
    for (long t = 0; t < net->users; t++) {
        long i = 0;
        for (; i + ROWS <= net->items; i += ROWS) panel(ROWS, net, t, i, pointers);
        for (; i < net->items; i++) panel(1, net, t, i, pointers);
    }
}

static int64_t key_of(float score, int64_t low)
{
    int32_t value;
    score += 0.0f; /* minus zero is zero */
    memcpy(&value, &score, 4);
    if (value < 0) value ^= 0x7FFFFFFF;
    return (int64_t)((uint64_t)(int64_t)value << 31) + low;
}

static float score_of(int64_t key)
{
    int32_t value = (int32_t)(key >> 31);
    float score;
    if (value < 0) value ^= 0x7FFFFFFF;
    memcpy(&score, &value, 4);
    return score;
}

/* Replaces the least of a heap of k keys, the least on top. */
static void replace_least(int64_t *heap, long k, int64_t key)
{
    long at = 0;
    for (;;) {
        long child = 2 * at + 1;
        if (child >= k) break;
        child += child + 1 < k && heap[child + 1] < heap[child];
        if (heap[child] >= key) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
}

/* Whether any of SCANNED scores reaches `least`; adds to `odd` what is not 0 where one is not finite. */
static int any_reaches(const float *found, float least, lanes *odd)
{
    lanes zero = {0}, sum = {0};
    for (int c = 0; c < SCANNED; c += LANES) sum += *(const lanes *)(found + c) * zero; /* x * 0 is 0, or NaN */
    *odd += sum;
    int reached = 0;
    for (int c = 0; c < SCANNED; c++) reached |= found[c] >= least;
    return reached;
}

/* Takes a tile of N scores into the heaps of T users.
 *
 * scores: [T, N] with a stride of `stride` (0: one row for all users). low: [N] the low halves of keys. usable: [N], or
 * [T, N] with by_user = N, or NULL for all. owned, offsets: of each user the places in the whole catalogue that are not wanted, ascending; the tile
 * begins at place `start`. cursor: [T] how far these have been read. heaps: [T, k]. sound: [T], set to 0 where a usable
 * score is not finite. */
void merge(const float *scores, long users, long items, long stride, const int64_t *low, const uint8_t *usable,
           long by_user, const int64_t *owned, const int64_t *offsets, int64_t *cursor, long start, int64_t *heaps, long k,
           uint8_t *sound)
{
    for (long t = 0; t < users; t++) {
        int64_t *heap = heaps + t * k;
        const float *found = scores + t * stride;
        const uint8_t *kept = usable ? usable + t * by_user : NULL;
        lanes odd = {0};
        float any = 0, least = score_of(heap[0]);
        int64_t next = cursor[t], end = offsets[t + 1];
        for (long i = 0; i < items; i += SCANNED) {
            long stop = i + SCANNED < items ? i + SCANNED : items;
            if (stop - i == SCANNED) {
                if (!any_reaches(found + i, least, &odd)) continue;
            } else
                for (long j = i; j < stop; j++) any += 0.0f * found[j];
            for (long j = i; j < stop; j++) {
                if (!(found[j] >= least) || !isfinite(found[j]) || (kept && !kept[j])) continue;
                while (next < end && owned[next] < start + j) next++;
                if (next < end && owned[next] == start + j) continue;
                int64_t key = key_of(found[j], low[j]);
                if (key > heap[0]) {
                    replace_least(heap, k, key);
                    least = score_of(heap[0]);
                }
            }
        }
        while (next < end && owned[next] < start + items) next++;
        cursor[t] = next;
        for (int c = 0; c < LANES; c++) any += odd[c];
        for (long i = 0; any != 0.0f && i < items; i++)
            if (!isfinite(found[i]) && (!kept || kept[i])) sound[t] = 0;
    }
}
