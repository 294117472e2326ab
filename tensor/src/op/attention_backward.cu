// The gradient of causal attention on tensor cores: one kernel for the queries, one for keys and values, each with the scores computed
// once more, so that every sum has one order and one owner.
// Legend: q, d_out, d_q `[windows * ctx, heads * HEAD_DIM]`, k, v, d_k, d_v `[windows * ctx, kv_heads * HEAD_DIM]`, bf16; log_sum,
// mean_slope `[heads, windows * ctx]`, as attention.cu gives them. Blocks of 4 warps; blockIdx.x is the head, z the window.
// With p = exp2(score - log_sum): d_v = p^T d_out, d_score = p (d_out v^T - mean_slope), d_q = d_score k, d_k = d_score^T q.
// After Dao, "FlashAttention-2", arXiv:2307.08691, Algorithm 2, with its loop over queries split off rather than added by atomics.

#define TILES (HEAD_DIM > 128 ? 1 : 2) // sixteens of queries of a warp
#define STEP (16 * TILES)              // keys or queries that come at a time
#define PARTS (HEAD_DIM > 128 ? 2 : 1) // blocks that share the features of d_k and d_v

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
    const int queries_of_block = 64 * TILES;
    const int queries_of_warp = 16 * TILES;
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
    int first = q0 + of_warp;
    float logs[2 * TILES], means[2 * TILES]; // of this lane's rows
#pragma unroll
    for (int row = 0; row < 2 * TILES; row++) {
        int query = first + row * 8 + lane / 4;
        i64 at = i64(head) * gridDim.z * ctx + window + query;
        logs[row] = query < ctx ? log_sum[at] : 0.0f;
        means[row] = query < ctx ? mean_slope[at] : 0.0f;
    }
    float unit = unit_of(scale, cap);
    float sums[TILES][HEAD_DIM / 8][4];
    clear(sums);
    for (int k0 = begin; k0 < end; k0 += STEP) {
        wait_for_sent();
        __syncthreads(); // keys and values are there, and nobody reads the keys before
        if (k0 + STEP < end) {
            send_rows<STEP>(next_keys, k, kv_stride, k0 + STEP, ctx);
        }
        float scores[TILES][STEP / 8][4], d_scores[TILES][STEP / 8][4];
        bool seen = first < ctx && k0 < first + queries_of_warp && first - k0 - (STEP - 1) < width; // by a query of the warp
        if (seen) {
            multiply_rows(scores, queries + of_warp * ROW_BYTES + left_lane(), keys + right_lane());
            multiply_rows(d_scores, slopes + of_warp * ROW_BYTES + left_lane(), values + right_lane());
        }
        __syncthreads(); // nobody reads the values any more
        if (k0 + STEP < end) {
            send_rows<STEP>(values, v, kv_stride, k0 + STEP, ctx);
        }
        Shared these = keys;
        keys = next_keys;
        next_keys = these;
        if (!seen) {
            continue;
        }
        each<TILES, STEP / 8>([&](int m, int n, int i) { d_scores[m][n][i] -= means[m * 2 + i / 2]; });
        if (cap > 0.0f) {
            float turn = scale / cap;
            each<TILES, STEP / 8>([&](int m, int n, int i) { cap_score(scores[m][n][i], d_scores[m][n][i], turn); });
        }
        if (k0 + STEP - 1 > first || first + queries_of_warp - 1 - k0 >= width) {
            each<TILES, STEP / 8>([&](int m, int n, int i) {
                int back = first + row_of(m, i) - k0 - column_of(n, i);
                scores[m][n][i] = back >= 0 && back < width ? scores[m][n][i] : -infinity();
            });
        }
        each<TILES, STEP / 8>([&](int m, int n, int i) {
            d_scores[m][n][i] *= exp2_near(scores[m][n][i] * unit - logs[m * 2 + i / 2]);
        });
        multiply_weights(sums, d_scores, these + left_lane());
    }
#pragma unroll
    for (int row = 0; row < 2 * TILES; row++) {
        int query = first + row * 8 + lane / 4;
        if (query < ctx) {
            store_row(d_q + start + i64(query) * stride, sums[row / 2], row % 2, scale);
        }
    }
}

// blockIdx.x is the key head, whose query heads and queries are added in order, and the part of its features.
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
    int kv_head = blockIdx.x / PARTS;
    int feature0 = blockIdx.x % PARTS * (HEAD_DIM / PARTS);
    i64 kv_start = window * kv_stride + i64(kv_head) * HEAD_DIM;

    // Two rooms for queries and the slopes of their results; what a row has more than its features holds log_sum and mean_slope.
    Shared keys = shared_address(memory);
    Shared values = keys + keys_of_block * ROW_BYTES;
    Shared rooms = values + keys_of_block * ROW_BYTES;
    int last = (k0 + keys_of_block < ctx ? k0 + keys_of_block : ctx) - 1;
    int end = ctx - last > width ? last + width : ctx; // no query from here on sees one of the keys
    auto send_step = [&](int room, int head, int q0) {
        Shared to = rooms + room * (2 * STEP * ROW_BYTES);
        send_rows<STEP>(to, q + start + i64(head) * HEAD_DIM, stride, q0, ctx);
        send_rows<STEP>(to + STEP * ROW_BYTES, d_out + start + i64(head) * HEAD_DIM, stride, q0, ctx);
        if (threadIdx.x < 2 * STEP) {
            int query = q0 + int(threadIdx.x % STEP);
            const float* from = threadIdx.x < STEP ? log_sum : mean_slope;
            send_4(to + threadIdx.x * ROW_BYTES + HEAD_DIM * 2, from + i64(head) * gridDim.z * ctx + window + query, query < ctx);
        }
    };
    int shared_by = heads / kv_heads;
    int first_head = kv_head * shared_by;
    int end_head = first_head + shared_by;
    send_rows<keys_of_block>(keys, k + kv_start, kv_stride, k0, ctx);
    send_rows<keys_of_block>(values, v + kv_start, kv_stride, k0, ctx);
    send_step(0, first_head, k0);
    wait_for_sent();
    __syncthreads();

    int lane = threadIdx.x % 32;
    int of_warp = threadIdx.x / 32 * 16;
    int key0 = k0 + of_warp;
    Shared own_keys = keys + of_warp * ROW_BYTES + left_lane();
    Shared own_values = values + of_warp * ROW_BYTES + left_lane();
    u32 kept_keys[HEAD_DIM / 16][1][4];
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        load_matrices(kept_keys[step][0], own_keys + step * 32);
    }
    float unit = unit_of(scale, cap);
    float key_sums[1][HEAD_DIM / PARTS / 8][4], value_sums[1][HEAD_DIM / PARTS / 8][4];
    clear(key_sums);
    clear(value_sums);
    int room = 0;
    for (int head = first_head; head < end_head; head++) {
        for (int q0 = k0; q0 < end; q0 += STEP) {
            wait_for_sent();
            __syncthreads(); // the queries are there, and nobody reads those before
            bool more = q0 + STEP < end;
            if (more || head + 1 < end_head) {
                send_step(1 - room, more ? head : head + 1, more ? q0 + STEP : k0);
            }
            Shared queries = rooms + room * (2 * STEP * ROW_BYTES);
            Shared slopes = queries + STEP * ROW_BYTES;
            // A row's two figures.
            const unsigned char* more_of_row = memory + (queries - keys) + HEAD_DIM * 2;
            float scores[1][STEP / 8][4], d_scores[1][STEP / 8][4];
            if (PARTS == 1) {
                multiply_kept_rows(scores, kept_keys, queries + right_lane());
            } else {
                multiply_rows(scores, own_keys, queries + right_lane());
            }
            multiply_rows(d_scores, own_values, slopes + right_lane());
            auto figure = [&](int row) { return *(const float*)(more_of_row + row * ROW_BYTES); };
            each<1, STEP / 8>([&](int m, int n, int i) { d_scores[m][n][i] -= figure(STEP + column_of(n, i)); });
            if (cap > 0.0f) {
                float turn = scale / cap;
                each<1, STEP / 8>([&](int m, int n, int i) { cap_score(scores[m][n][i], d_scores[m][n][i], turn); });
            }
            if (key0 + 15 > q0 || q0 + STEP - 1 - key0 >= width) {
                each<1, STEP / 8>([&](int m, int n, int i) {
                    int back = q0 + column_of(n, i) - key0 - row_of(m, i);
                    scores[m][n][i] = back >= 0 && back < width ? scores[m][n][i] : -infinity();
                });
            }
            each<1, STEP / 8>([&](int m, int n, int i) {
                scores[m][n][i] = exp2_near(scores[m][n][i] * unit - figure(column_of(n, i)));
                d_scores[m][n][i] *= scores[m][n][i];
            });
            multiply_weights(value_sums, scores, slopes + left_lane() + feature0 * 2);
            multiply_weights(key_sums, d_scores, queries + left_lane() + feature0 * 2);
            room = 1 - room;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int key = key0 + half * 8 + lane / 4;
        if (key < ctx) {
            i64 at = kv_start + i64(key) * kv_stride + feature0;
            store_row(d_k + at, key_sums[0], half, scale);
            store_row(d_v + at, value_sums[0], half, 1.0f);
        }
    }
}
