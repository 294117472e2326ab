// Causal attention on tensor cores, within windows of ctx tokens: softmax(cap(scale q k^T)) v without a ctx x ctx matrix.
// Legend: q, out `[windows * ctx, heads * HEAD_DIM]`, k, v `[windows * ctx, kv_heads * HEAD_DIM]`, bf16; HEAD_DIM a multiple of 16.
// A block of 4 warps takes 64 queries of one head, a warp 16 of them; keys come 64 (heads above 128: 32) at a time by way of
// shared memory. Scores are kept in units of ln 2, their largest and their sum per query as they come.
// After Dao, "FlashAttention-2", arXiv:2307.08691, Algorithm 1.

#define QUERIES 64
#define KEYS (HEAD_DIM > 128 ? 32 : 64)
// Eight elements more than a row has: rows that follow one another then begin in different banks.
#define PITCH (HEAD_DIM + 8)
#define ROW_WORDS (HEAD_DIM / 8)

// Rows k0 .. k0 + KEYS of one head to shared memory; rows past the window become 0.
DEVICE void load_rows(bf16* to, const bf16* from, i64 stride, int k0, int ctx) {
    for (int at = threadIdx.x; at < KEYS * ROW_WORDS; at += blockDim.x) {
        int row = at / ROW_WORDS;
        int word = at % ROW_WORDS;
        Bytes16 bytes = {{0, 0, 0, 0}};
        if (k0 + row < ctx) {
            bytes = *(const Bytes16*)(from + i64(k0 + row) * stride + word * 8);
        }
        *(Bytes16*)(to + row * PITCH + word * 8) = bytes;
    }
}

// Two neighbouring elements of a query, 0 past the window.
DEVICE u32 load_pair(const bf16* q, i64 stride, int query, int feature, int ctx) {
    return query < ctx ? *(const u32*)(q + i64(query) * stride + feature) : 0u;
}

// width: how many tokens a query sees, itself included; cap: 0 for none.
KERNEL __launch_bounds__(128) attention(bf16* out, const bf16* q, const bf16* k, const bf16* v, int ctx, int heads,
                                        int kv_heads, int width, float scale, float cap) {
    __shared__ __align__(16) bf16 keys[KEYS * PITCH];
    __shared__ __align__(16) bf16 values[KEYS * PITCH];
    const float log2_e = 1.44269504f;
    int head = blockIdx.y;
    int q0 = int(gridDim.x - 1 - blockIdx.x) * QUERIES; // the longest rows first
    i64 q_stride = i64(heads) * HEAD_DIM;
    i64 kv_stride = i64(kv_heads) * HEAD_DIM;
    i64 first_token = i64(blockIdx.z) * ctx;
    i64 kv_start = first_token * kv_stride + i64(head / (heads / kv_heads)) * HEAD_DIM;
    q += first_token * q_stride + i64(head) * HEAD_DIM;
    out += first_token * q_stride + i64(head) * HEAD_DIM;

    int lane = threadIdx.x % 32;
    int group = lane / 4; // row of a fragment
    int pair = lane % 4;  // two of its columns
    int query[2] = {q0 + int(threadIdx.x / 32) * 16 + group, q0 + int(threadIdx.x / 32) * 16 + group + 8};

    u32 left[HEAD_DIM / 16][4];
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        int feature = step * 16 + pair * 2;
        left[step][0] = load_pair(q, q_stride, query[0], feature, ctx);
        left[step][1] = load_pair(q, q_stride, query[1], feature, ctx);
        left[step][2] = load_pair(q, q_stride, query[0], feature + 8, ctx);
        left[step][3] = load_pair(q, q_stride, query[1], feature + 8, ctx);
    }
    float sums[HEAD_DIM / 8][4];
#pragma unroll
    for (int f = 0; f < HEAD_DIM / 8; f++) {
        sums[f][0] = sums[f][1] = sums[f][2] = sums[f][3] = 0.0f;
    }
    float largest[2] = {-infinity(), -infinity()};
    float total[2] = {0.0f, 0.0f}; // this lane's share

    int begin = q0 + 1 > width ? (q0 + 1 - width) / KEYS * KEYS : 0;
    int end = q0 + QUERIES < ctx ? q0 + QUERIES : ctx;
    for (int k0 = begin; k0 < end; k0 += KEYS) {
        __syncthreads();
        load_rows(keys, k + kv_start, kv_stride, k0, ctx);
        load_rows(values, v + kv_start, kv_stride, k0, ctx);
        __syncthreads();

        float scores[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
            scores[n + 1][0] = scores[n + 1][1] = scores[n + 1][2] = scores[n + 1][3] = 0.0f;
#pragma unroll
            for (int step = 0; step < HEAD_DIM / 16; step++) {
                u32 right[4]; // keys n * 8 and (n + 1) * 8, each for two eighths of features
                int row = n * 8 + lane / 16 * 8 + lane % 8;
                load_matrices(right, keys + row * PITCH + step * 16 + lane / 8 % 2 * 8);
                multiply_16x8x16(scores[n], left[step], right[0], right[1]);
                multiply_16x8x16(scores[n + 1], left[step], right[2], right[3]);
            }
        }
        float top[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = k0 + n * 8 + pair * 2 + i % 2;
                int at = query[i / 2];
                float score = scores[n][i] * scale;
                score = (cap > 0.0f ? cap * tanhf(score / cap) : score) * log2_e;
                scores[n][i] = key <= at && at - key < width ? score : -infinity();
                top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], shuffle_xor(top[r], 1));
            top[r] = fmaxf(top[r], shuffle_xor(top[r], 2));
            // A query that has seen nothing yet has no largest score to count from.
            float base = top[r] == -infinity() ? 0.0f : top[r];
            float shrink = exp2f(largest[r] - base);
            largest[r] = top[r];
            top[r] = base;
            total[r] *= shrink;
#pragma unroll
            for (int f = 0; f < HEAD_DIM / 8; f++) {
                sums[f][2 * r] *= shrink;
                sums[f][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[n][i] = exp2f(scores[n][i] - top[i / 2]);
                total[i / 2] += scores[n][i];
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            u32 weights[4] = {pack_bf16(scores[2 * step][0], scores[2 * step][1]),
                              pack_bf16(scores[2 * step][2], scores[2 * step][3]),
                              pack_bf16(scores[2 * step + 1][0], scores[2 * step + 1][1]),
                              pack_bf16(scores[2 * step + 1][2], scores[2 * step + 1][3])};
#pragma unroll
            for (int f = 0; f < HEAD_DIM / 8; f += 2) {
                u32 right[4]; // two eighths of keys, for features f * 8 and (f + 1) * 8
                load_matrices_transposed(right, values + (step * 16 + lane % 16) * PITCH + f * 8 + lane / 16 * 8);
                multiply_16x8x16(sums[f], weights, right[0], right[1]);
                multiply_16x8x16(sums[f + 1], weights, right[2], right[3]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] += shuffle_xor(total[r], 1);
        total[r] += shuffle_xor(total[r], 2);
        if (query[r] >= ctx) {
            continue;
        }
        float scale_down = 1.0f / total[r];
#pragma unroll
        for (int f = 0; f < HEAD_DIM / 8; f++) {
            *(u32*)(out + i64(query[r]) * q_stride + f * 8 + pair * 2) =
                pack_bf16(sums[f][2 * r] * scale_down, sums[f][2 * r + 1] * scale_down);
        }
    }
}
