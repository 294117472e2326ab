// Causal attention on tensor cores, within windows of ctx tokens: softmax(cap(scale q k^T)) v without a ctx x ctx matrix.
// Legend: q, out, d_out `[windows * ctx, heads * HEAD_DIM]`, k, v `[windows * ctx, kv_heads * HEAD_DIM]`, bf16;
// log_sum, mean_slope `[heads, windows * ctx]`.
// A block of 4 warps takes QUERIES queries of one head, a warp a quarter of them; keys come 64 at a time, and values while the scores
// of their keys are computed. blockIdx.x is the head, so that heads that share keys run together, y the queries, z the window.
// After Dao, "FlashAttention-2", arXiv:2307.08691, Algorithm 1.

#define TILES (HEAD_DIM > 128 ? 1 : 2) // sixteens of queries of a warp
#define QUERIES (64 * TILES)
#define KEYS 64

// width: how many tokens a query sees, itself included; scale is above 0; cap: 0 for none.
// Without d_out the result is `out` alone; with it, what the gradient needs of each query alone: log_sum, the base-2 logarithm of its
// softmax's denominator, and mean_slope, out d_out^T.
KERNEL __launch_bounds__(THREADS) attention(bf16* out, float* log_sum, float* mean_slope, const bf16* q, const bf16* k,
                                            const bf16* v, const bf16* d_out, int ctx, int heads, int kv_heads, int width,
                                            float scale, float cap) {
    DYNAMIC_SHARED(memory);
    const float log2_e = 1.44269504f;
    int head = blockIdx.x;
    int q0 = int(gridDim.y - 1 - blockIdx.y) * QUERIES; // the longest rows first
    i64 q_stride = i64(heads) * HEAD_DIM;
    i64 kv_stride = i64(kv_heads) * HEAD_DIM;
    i64 window = i64(blockIdx.z) * ctx;
    i64 q_start = window * q_stride + i64(head) * HEAD_DIM;
    i64 kv_start = window * kv_stride + i64(head / (heads / kv_heads)) * HEAD_DIM;
    k += kv_start;
    v += kv_start;

    Shared queries = shared_address(memory);
    Shared keys = queries + QUERIES * ROW_BYTES;
    Shared values = keys + KEYS * ROW_BYTES;
    int of_warp = threadIdx.x / 32 * 16 * TILES; // the warp's first query in the block
    int first = q0 + of_warp;
    int lane = threadIdx.x % 32;

    float sums[TILES][HEAD_DIM / 8][4];
    clear(sums);
    float largest[TILES][2];
    float total[TILES][2]; // this lane's share
#pragma unroll
    for (int m = 0; m < TILES; m++) {
        largest[m][0] = largest[m][1] = -infinity();
        total[m][0] = total[m][1] = 0.0f;
    }
    // What makes an exponent of two of a score.
    float unit = (cap > 0.0f ? cap : scale) * log2_e;

    int begin = q0 + 1 > width ? (q0 + 1 - width) / KEYS * KEYS : 0;
    int end = q0 + QUERIES < ctx ? q0 + QUERIES : ctx;
    send_rows<QUERIES>(queries, q + q_start, q_stride, q0, ctx);
    send_rows<KEYS>(keys, k, kv_stride, begin, ctx);
    for (int k0 = begin; k0 < end; k0 += KEYS) {
        wait_for_sent();
        __syncthreads(); // the keys are there, and nobody reads the values before
        send_rows<KEYS>(values, v, kv_stride, k0, ctx);
        float scores[TILES][KEYS / 8][4];
        bool seen = first < ctx && k0 < first + 16 * TILES && first - k0 - (KEYS - 1) < width; // by a query of the warp
        if (seen) {
            multiply_rows(scores, queries + of_warp * ROW_BYTES + left_lane(), keys + right_lane());
            if (cap > 0.0f) {
                float turn = scale / cap;
                each<TILES, KEYS / 8>([&](int m, int n, int i) { scores[m][n][i] = tanh_near(scores[m][n][i] * turn); });
            }
            if (k0 + KEYS - 1 > first || first + 16 * TILES - 1 - k0 >= width) {
                each<TILES, KEYS / 8>([&](int m, int n, int i) {
                    int back = first + row_of(m, i) - k0 - column_of(n, i);
                    scores[m][n][i] = back >= 0 && back < width ? scores[m][n][i] : -infinity();
                });
            }
        }
        wait_for_sent();
        __syncthreads(); // the values are there, and nobody reads the keys any more
        if (k0 + KEYS < end) {
            send_rows<KEYS>(keys, k, kv_stride, k0 + KEYS, ctx);
        }
        if (!seen) {
            continue;
        }
#pragma unroll
        for (int row = 0; row < TILES * 2; row++) {
            int m = row / 2;
            int r = row % 2;
            float top = largest[m][r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                top = fmaxf(top, fmaxf(scores[m][n][2 * r], scores[m][n][2 * r + 1]));
            }
            top = row_reduce(top, Max());
            // A query that has seen nothing yet has no largest score to count from.
            float base = top == -infinity() ? 0.0f : top * unit;
            float shrink = exp2_near(largest[m][r] * unit - base);
            largest[m][r] = top;
            total[m][r] *= shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) {
                    scores[m][n][i] = exp2_near(scores[m][n][i] * unit - base);
                    total[m][r] += scores[m][n][i];
                }
            }
#pragma unroll
            for (int f = 0; f < HEAD_DIM / 8; f++) {
                sums[m][f][2 * r] *= shrink;
                sums[m][f][2 * r + 1] *= shrink;
            }
        }
        multiply_weights(sums, scores, values + left_lane());
    }
#pragma unroll
    for (int row = 0; row < TILES * 2; row++) {
        int m = row / 2;
        int r = row % 2;
        int query = first + m * 16 + r * 8 + lane / 4;
        float sum = row_reduce(total[m][r], Sum());
        i64 at = q_start + i64(query) * q_stride;
        if (d_out == nullptr) {
            if (query < ctx) {
                store_row(out + at, sums[m], r, 1.0f / sum);
            }
            continue;
        }
        float mean = row_reduce(query < ctx ? dot_row(d_out + at, sums[m], r) : 0.0f, Sum()) / sum;
        if (query < ctx && lane % 4 == 0) {
            i64 of_row = i64(head) * gridDim.z * ctx + window + query;
            log_sum[of_row] = largest[m][r] * unit + log2f(sum);
            mean_slope[of_row] = mean;
        }
    }
}
