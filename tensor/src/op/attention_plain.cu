// Causal attention and its gradient in f32 arithmetic, one warp for a query or a key: the truth on the device, and the gradient.
// Legend: q, out, d_out, d_q `[windows * ctx, heads * head_dim]`, k, v, d_k, d_v `[windows * ctx, kv_heads * head_dim]` of ELEMENT,
// log_sum and mean_slope `[windows * ctx, heads]`; head_dim at most 256. Blocks of 4 warps; blockIdx.y is the head, z the window.

#define WARPS 4
#define PARTS 8 // features of a lane: lane, lane + 32, ...

DEVICE float dot(const float* a, const ELEMENT* b, int len) {
    float sum = 0.0f;
    for (int i = 0; i < len; i++) {
        sum += a[i] * to_float(b[i]);
    }
    return sum;
}

DEVICE float capped(float score, float cap) { return cap > 0.0f ? cap * tanhf(score / cap) : score; }

// How much a capped score changes with what it was before.
DEVICE float cap_slope(float score, float cap) { return cap > 0.0f ? 1.0f - score / cap * (score / cap) : 1.0f; }

DEVICE void load_row(float* to, const ELEMENT* from, int len) {
    for (int i = threadIdx.x % 32; i < len; i += 32) {
        to[i] = to_float(from[i]);
    }
}

KERNEL attention_plain(ELEMENT* out, const ELEMENT* q, const ELEMENT* k, const ELEMENT* v, int ctx, int heads, int kv_heads,
                       int head_dim, int width, float scale, float cap) {
    __shared__ float rows[WARPS][32 * PARTS];
    int lane = threadIdx.x % 32;
    float* own = rows[threadIdx.x / 32];
    int query = blockIdx.x * WARPS + threadIdx.x / 32;
    if (query >= ctx) {
        return;
    }
    i64 window = i64(blockIdx.z) * ctx;
    i64 stride = i64(kv_heads) * head_dim;
    i64 at = ((window + query) * heads + blockIdx.y) * head_dim;
    i64 other = window * stride + i64(blockIdx.y / (heads / kv_heads)) * head_dim;
    load_row(own, q + at, head_dim);
    __syncwarp();

    float sums[PARTS] = {0.0f};
    float largest = -infinity();
    float total = 0.0f;
    for (int k0 = query + 1 > width ? query + 1 - width : 0; k0 <= query; k0 += 32) {
        int key = k0 + lane;
        float score = -infinity();
        if (key <= query) {
            score = capped(dot(own, k + other + key * stride, head_dim) * scale, cap);
        }
        float top = fmaxf(largest, warp_reduce(score, Max()));
        float shrink = expf(largest - top);
        float weight = expf(score - top);
        largest = top;
        total = total * shrink + warp_reduce(weight, Sum());
        for (int i = 0; i < PARTS; i++) {
            sums[i] *= shrink;
        }
        for (int j = 0; j < 32 && k0 + j <= query; j++) {
            float each = shuffle_from(weight, j);
            for (int i = 0; i < PARTS && lane + 32 * i < head_dim; i++) {
                sums[i] += each * to_float(v[other + (k0 + j) * stride + lane + 32 * i]);
            }
        }
    }
    for (int i = 0; i < PARTS && lane + 32 * i < head_dim; i++) {
        store(out + at + lane + 32 * i, sums[i] / total);
    }
}

// The gradient of q, and for each query what the keys' gradients need: the logarithm of its softmax's denominator, and the
// mean slope of its weights, sum(p d_p). The scores are computed twice rather than kept.
KERNEL attention_backward_queries(ELEMENT* d_q, float* log_sum, float* mean_slope, const ELEMENT* q, const ELEMENT* k,
                                  const ELEMENT* v, const ELEMENT* d_out, int ctx, int heads, int kv_heads, int head_dim,
                                  int width, float scale, float cap) {
    __shared__ float rows[2 * WARPS][32 * PARTS];
    int lane = threadIdx.x % 32;
    float* own = rows[threadIdx.x / 32];
    float* slope = rows[WARPS + threadIdx.x / 32];
    int query = blockIdx.x * WARPS + threadIdx.x / 32;
    if (query >= ctx) {
        return;
    }
    i64 window = i64(blockIdx.z) * ctx;
    i64 stride = i64(kv_heads) * head_dim;
    i64 at = ((window + query) * heads + blockIdx.y) * head_dim;
    i64 other = window * stride + i64(blockIdx.y / (heads / kv_heads)) * head_dim;
    load_row(own, q + at, head_dim);
    load_row(slope, d_out + at, head_dim);
    __syncwarp();

    int first = query + 1 > width ? query + 1 - width : 0;
    float largest = -infinity();
    float total = 0.0f;
    float mean = 0.0f;
    for (int k0 = first; k0 <= query; k0 += 32) {
        int key = k0 + lane;
        float score = -infinity();
        float d_weight = 0.0f;
        if (key <= query) {
            score = capped(dot(own, k + other + key * stride, head_dim) * scale, cap);
            d_weight = dot(slope, v + other + key * stride, head_dim);
        }
        float top = fmaxf(largest, warp_reduce(score, Max()));
        float shrink = expf(largest - top);
        float weight = expf(score - top);
        largest = top;
        total = total * shrink + warp_reduce(weight, Sum());
        mean = mean * shrink + warp_reduce(weight * d_weight, Sum());
    }
    mean /= total;
    float denominator = largest + logf(total);
    float sums[PARTS] = {0.0f};
    for (int k0 = first; k0 <= query; k0 += 32) {
        int key = k0 + lane;
        float d_score = 0.0f;
        if (key <= query) {
            float score = capped(dot(own, k + other + key * stride, head_dim) * scale, cap);
            float d_weight = dot(slope, v + other + key * stride, head_dim);
            d_score = expf(score - denominator) * (d_weight - mean) * cap_slope(score, cap) * scale;
        }
        for (int j = 0; j < 32 && k0 + j <= query; j++) {
            float each = shuffle_from(d_score, j);
            for (int i = 0; i < PARTS && lane + 32 * i < head_dim; i++) {
                sums[i] += each * to_float(k[other + (k0 + j) * stride + lane + 32 * i]);
            }
        }
    }
    for (int i = 0; i < PARTS && lane + 32 * i < head_dim; i++) {
        store(d_q + at + lane + 32 * i, sums[i]);
    }
    if (lane == 0) {
        log_sum[(window + query) * heads + blockIdx.y] = denominator;
        mean_slope[(window + query) * heads + blockIdx.y] = mean;
    }
}

// The gradients of k and v; blockIdx.y is the key head, whose query heads and queries are added in order.
KERNEL attention_backward_keys(ELEMENT* d_k, ELEMENT* d_v, const float* log_sum, const float* mean_slope, const ELEMENT* q,
                               const ELEMENT* k, const ELEMENT* v, const ELEMENT* d_out, int ctx, int heads, int kv_heads,
                               int head_dim, int width, float scale, float cap) {
    __shared__ float rows[2 * WARPS][32 * PARTS];
    int lane = threadIdx.x % 32;
    float* own_key = rows[threadIdx.x / 32];
    float* own_value = rows[WARPS + threadIdx.x / 32];
    int key = blockIdx.x * WARPS + threadIdx.x / 32;
    if (key >= ctx) {
        return;
    }
    i64 window = i64(blockIdx.z) * ctx;
    i64 stride = i64(heads) * head_dim;
    i64 at = ((window + key) * kv_heads + blockIdx.y) * head_dim;
    load_row(own_key, k + at, head_dim);
    load_row(own_value, v + at, head_dim);
    __syncwarp();

    int last = ctx - key > width ? key + width - 1 : ctx - 1;
    int shared_by = heads / kv_heads;
    float key_sums[PARTS] = {0.0f};
    float value_sums[PARTS] = {0.0f};
    for (int head = blockIdx.y * shared_by; head < int(blockIdx.y + 1) * shared_by; head++) {
        i64 other = window * stride + i64(head) * head_dim;
        for (int q0 = key; q0 <= last; q0 += 32) {
            int query = q0 + lane;
            float weight = 0.0f;
            float d_score = 0.0f;
            if (query <= last) {
                i64 row = (window + query) * heads + head;
                float score = capped(dot(own_key, q + other + query * stride, head_dim) * scale, cap);
                float d_weight = dot(own_value, d_out + other + query * stride, head_dim);
                weight = expf(score - log_sum[row]);
                d_score = weight * (d_weight - mean_slope[row]) * cap_slope(score, cap) * scale;
            }
            for (int j = 0; j < 32 && q0 + j <= last; j++) {
                float each_weight = shuffle_from(weight, j);
                float each_slope = shuffle_from(d_score, j);
                i64 from = other + (q0 + j) * stride + lane;
                for (int i = 0; i < PARTS && lane + 32 * i < head_dim; i++) {
                    value_sums[i] += each_weight * to_float(d_out[from + 32 * i]);
                    key_sums[i] += each_slope * to_float(q[from + 32 * i]);
                }
            }
        }
    }
    for (int i = 0; i < PARTS && lane + 32 * i < head_dim; i++) {
        store(d_k + at + lane + 32 * i, key_sums[i]);
        store(d_v + at + lane + 32 * i, value_sums[i]);
    }
}
