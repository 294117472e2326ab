// The gradient of causal attention on tensor cores: one kernel for the queries, one for keys and values, each with the scores computed
// once more, so that every sum has one order and one owner.
// Legend: q, d_out, d_q `[windows * ctx, heads * HEAD_DIM]`, k, v, d_k, d_v `[windows * ctx, kv_heads * HEAD_DIM]`, bf16; log_sum,
// mean_slope `[heads, windows * ctx]`, as attention.cu gives them; HEAD_DIM at most 128. Blocks of 4 warps; blockIdx.x is the head,
// z the window.
// With p = exp2(score - log_sum): d_v = p^T d_out, d_score = p (d_out v^T - mean_slope), d_q = d_score k, d_k = d_score^T q.
// After Dao, "FlashAttention-2", arXiv:2307.08691, Algorithm 2, with its loop over queries split off rather than added by atomics.

#define STEP 32 // keys or queries that come at a time

// What a cap makes of a score, and of a slope on its way back.
DEVICE void cap_score(float& score, float& slope, float turn) {
    score = tanh_near(score * turn);
    slope *= 1.0f - score * score;
}

// What makes an exponent of two of a score.
DEVICE float unit_of(float scale, float cap) { return (cap > 0.0f ? cap : scale) * 1.44269504f; }

KERNEL __launch_bounds__(THREADS) attention_backward_queries(bf16* d_q, const float* log_sum, const float* mean_slope,
                                                             const bf16* q, const bf16* k, const bf16* v, const bf16* d_out,
                                                             int ctx, int heads, int kv_heads, int width, float scale,
                                                             float cap) {
    DYNAMIC_SHARED(memory);
    const int queries_of_block = 128;
    const int queries_of_warp = 32;
    int head = blockIdx.x;
    int q0 = int(gridDim.y - 1 - blockIdx.y) * queries_of_block; // the longest rows first
    i64 stride = i64(heads) * HEAD_DIM;
    i64 kv_stride = i64(kv_heads) * HEAD_DIM;
    i64 window = i64(blockIdx.z) * ctx;
    i64 start = window * stride + i64(head) * HEAD_DIM;
    i64 kv_start = window * kv_stride + i64(head / (heads / kv_heads)) * HEAD_DIM;
    k += kv_start;
    v += kv_start;

    Shared queries = shared_address(memory);
    Shared slopes = queries + queries_of_block * ROW_BYTES;
    Shared values = slopes + queries_of_block * ROW_BYTES;
    Shared keys = values + STEP * ROW_BYTES; // this step's
    Shared next_keys = keys + STEP * ROW_BYTES;
    int begin = q0 + 1 > width ? (q0 + 1 - width) / STEP * STEP : 0;
    int end = q0 + queries_of_block < ctx ? q0 + queries_of_block : ctx;
    send_rows<queries_of_block>(queries, q + start, stride, q0, ctx);
    send_rows<queries_of_block>(slopes, d_out + start, stride, q0, ctx);
    send_rows<STEP>(keys, k, kv_stride, begin, ctx);
    send_rows<STEP>(values, v, kv_stride, begin, ctx);

    int lane = threadIdx.x % 32;
    int of_warp = threadIdx.x / 32 * queries_of_warp;
    float logs[4], means[4]; // of this lane's four rows
#pragma unroll
    for (int row = 0; row < 4; row++) {
        int query = q0 + of_warp + row * 8 + lane / 4;
        i64 at = i64(head) * gridDim.z * ctx + window + query;
        logs[row] = query < ctx ? log_sum[at] : 0.0f;
        means[row] = query < ctx ? mean_slope[at] : 0.0f;
    }
    float unit = unit_of(scale, cap);
    float sums[2][HEAD_DIM / 8][4];
    clear(sums);
    for (int k0 = begin; k0 < end; k0 += STEP) {
        wait_for_sent();
        __syncthreads(); // keys and values are there, and nobody reads the keys before
        if (k0 + STEP < end) {
            send_rows<STEP>(next_keys, k, kv_stride, k0 + STEP, ctx);
        }
        float scores[2][STEP / 8][4], d_scores[2][STEP / 8][4];
        multiply_rows(scores, queries + of_warp * ROW_BYTES + left_lane(), keys + right_lane());
        multiply_rows(d_scores, slopes + of_warp * ROW_BYTES + left_lane(), values + right_lane());
        __syncthreads(); // nobody reads the values any more
        if (k0 + STEP < end) {
            send_rows<STEP>(values, v, kv_stride, k0 + STEP, ctx);
        }
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            d_scores[i / 16][i / 4 % 4][i % 4] -= means[i / 16 * 2 + i % 4 / 2];
        }
        if (cap > 0.0f) {
#pragma unroll
            for (int i = 0; i < STEP; i++) {
                cap_score(scores[i / 16][i / 4 % 4][i % 4], d_scores[i / 16][i / 4 % 4][i % 4], scale / cap);
            }
        }
        int first = q0 + of_warp;
        if (k0 + STEP - 1 > first || first + queries_of_warp - 1 - k0 >= width) {
#pragma unroll
            for (int i = 0; i < STEP; i++) {
                int at = first + i / 16 * 16 + i % 4 / 2 * 8 + lane / 4;
                int key = k0 + i / 4 % 4 * 8 + lane % 4 * 2 + i % 2;
                if (key > at || at - key >= width) {
                    scores[i / 16][i / 4 % 4][i % 4] = -infinity();
                }
            }
        }
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            float score = scores[i / 16][i / 4 % 4][i % 4];
            d_scores[i / 16][i / 4 % 4][i % 4] *= exp2_near(score * unit - logs[i / 16 * 2 + i % 4 / 2]);
        }
        multiply_weights(sums, d_scores, keys + left_lane());
        Shared spare = keys;
        keys = next_keys;
        next_keys = spare;
    }
#pragma unroll
    for (int row = 0; row < 4; row++) {
        int query = q0 + of_warp + row * 8 + lane / 4;
        if (query < ctx) {
            store_row(d_q + start + i64(query) * stride, sums[row / 2], row % 2, scale);
        }
    }
}

// blockIdx.x is the key head, whose query heads and queries are added in order.
KERNEL __launch_bounds__(THREADS) attention_backward_keys(bf16* d_k, bf16* d_v, const float* log_sum, const float* mean_slope,
                                                          const bf16* q, const bf16* k, const bf16* v, const bf16* d_out,
                                                          int ctx, int heads, int kv_heads, int width, float scale, float cap) {
    DYNAMIC_SHARED(memory);
    const int keys_of_block = 64;
    int k0 = blockIdx.y * keys_of_block; // the longest columns first
    i64 stride = i64(heads) * HEAD_DIM;
    i64 kv_stride = i64(kv_heads) * HEAD_DIM;
    i64 window = i64(blockIdx.z) * ctx;
    i64 start = window * stride;
    i64 kv_start = window * kv_stride + i64(blockIdx.x) * HEAD_DIM;

    // Two rooms for queries, the slopes of their results, and the two figures of each query.
    Shared keys = shared_address(memory);
    Shared values = keys + keys_of_block * ROW_BYTES;
    Shared rooms = values + keys_of_block * ROW_BYTES;
    const int figures_at = (2 * keys_of_block + 4 * STEP) * ROW_BYTES;
    int last = (k0 + keys_of_block < ctx ? k0 + keys_of_block : ctx) - 1;
    int end = ctx - last > width ? last + width : ctx; // no query from here on sees one of the keys
    int steps_of_head = (end - k0 + STEP - 1) / STEP;
    int shared_by = heads / kv_heads;
    int steps = shared_by * steps_of_head;
    auto send_step = [&](int step) {
        int head = blockIdx.x * shared_by + step / steps_of_head;
        int q0 = k0 + step % steps_of_head * STEP;
        Shared room = rooms + step % 2 * (2 * STEP * ROW_BYTES);
        send_rows<STEP>(room, q + start + i64(head) * HEAD_DIM, stride, q0, ctx);
        send_rows<STEP>(room + STEP * ROW_BYTES, d_out + start + i64(head) * HEAD_DIM, stride, q0, ctx);
        if (threadIdx.x < 2 * STEP) {
            int query = q0 + threadIdx.x % STEP;
            const float* from = threadIdx.x < STEP ? log_sum : mean_slope;
            send_4(keys + figures_at + (step % 2 * 2 * STEP + threadIdx.x) * 4,
                   from + i64(head) * gridDim.z * ctx + window + query, query < ctx);
        }
    };
    send_rows<keys_of_block>(keys, k + kv_start, kv_stride, k0, ctx);
    send_rows<keys_of_block>(values, v + kv_start, kv_stride, k0, ctx);
    send_step(0);
    wait_for_sent();
    __syncthreads();

    int lane = threadIdx.x % 32;
    int of_warp = threadIdx.x / 32 * 16;
    int key0 = k0 + of_warp;
    u32 own_keys[HEAD_DIM / 16][1][4];
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        load_matrices(own_keys[step][0], keys + of_warp * ROW_BYTES + left_lane() + step * 32);
    }
    float unit = unit_of(scale, cap);
    float key_sums[1][HEAD_DIM / 8][4], value_sums[1][HEAD_DIM / 8][4];
    clear(key_sums);
    clear(value_sums);
    for (int step = 0; step < steps; step++) {
        wait_for_sent();
        __syncthreads(); // the queries are there, and nobody reads those before
        if (step + 1 < steps) {
            send_step(step + 1);
        }
        int q0 = k0 + step % steps_of_head * STEP;
        Shared queries = rooms + step % 2 * (2 * STEP * ROW_BYTES);
        Shared slopes = queries + STEP * ROW_BYTES;
        const float* figures = (const float*)(memory + figures_at) + step % 2 * 2 * STEP;
        float scores[1][STEP / 8][4], d_scores[1][STEP / 8][4];
        multiply_kept_rows(scores, own_keys, queries + right_lane());
        multiply_rows(d_scores, values + of_warp * ROW_BYTES + left_lane(), slopes + right_lane());
#pragma unroll
        for (int i = 0; i < STEP / 2; i++) {
            d_scores[0][i / 4][i % 4] -= figures[STEP + i / 4 * 8 + lane % 4 * 2 + i % 2];
        }
        if (cap > 0.0f) {
#pragma unroll
            for (int i = 0; i < STEP / 2; i++) {
                cap_score(scores[0][i / 4][i % 4], d_scores[0][i / 4][i % 4], scale / cap);
            }
        }
        if (key0 + 15 > q0 || q0 + STEP - 1 - key0 >= width) {
#pragma unroll
            for (int i = 0; i < STEP / 2; i++) {
                int at = q0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
                int key = key0 + i % 4 / 2 * 8 + lane / 4;
                if (key > at || at - key >= width) {
                    scores[0][i / 4][i % 4] = -infinity();
                }
            }
        }
#pragma unroll
        for (int i = 0; i < STEP / 2; i++) {
            float& score = scores[0][i / 4][i % 4];
            score = exp2_near(score * unit - figures[i / 4 * 8 + lane % 4 * 2 + i % 2]);
            d_scores[0][i / 4][i % 4] *= score;
        }
        multiply_weights(value_sums, scores, slopes + left_lane());
        multiply_weights(key_sums, d_scores, queries + left_lane());
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int key = key0 + half * 8 + lane / 4;
        if (key < ctx) {
            store_row(d_k + kv_start + i64(key) * kv_stride, key_sums[0], half, scale);
            store_row(d_v + kv_start + i64(key) * kv_stride, value_sums[0], half, 1.0f);
        }
    }
}
