// Root-mean-square normalisation and its gradient. Legend: x, out `[rows, features]` of ELEMENT, weight `[features]` of f32.
// `offset` is added to every weight: 1 where a file stores the distance from 1, else 0. A block of whole warps for each row.

DEVICE float inverse_root_mean_square(const ELEMENT* x, int features, float eps, float* partial) {
    float squares = 0.0f;
    for (int i = threadIdx.x; i < features; i += blockDim.x) {
        float value = to_float(x[i]);
        squares += value * value;
    }
    return 1.0f / sqrtf(block_reduce(squares, Sum(), partial) / float(features) + eps);
}

// out may be x.
KERNEL rms_norm(ELEMENT* out, const ELEMENT* x, const float* weight, int features, float eps, float offset) {
    __shared__ float partial[32];
    i64 start = i64(blockIdx.x) * features;
    float scale = inverse_root_mean_square(x + start, features, eps, partial);
    for (int i = threadIdx.x; i < features; i += blockDim.x) {
        store(out + start + i, (weight[i] + offset) * (to_float(x[start + i]) * scale));
    }
}

// d_x = (add ? d_x : 0) + gradient of x; d_weight `[blocks, features]` gets each block's share of the weight's gradient.
// A block takes `rows_each` consecutive rows one after another. d_x may be d_out.
KERNEL rms_norm_backward(ELEMENT* d_x, float* d_weight, const ELEMENT* x, const float* weight, const ELEMENT* d_out,
                         int features, i64 rows, int rows_each, float eps, float offset, int add) {
    __shared__ float partial[32];
    float* share = d_weight + i64(blockIdx.x) * features;
    for (int i = threadIdx.x; i < features; i += blockDim.x) {
        share[i] = 0.0f;
    }
    i64 first = i64(blockIdx.x) * rows_each;
    i64 last = first + rows_each < rows ? first + rows_each : rows;
    for (i64 row = first; row < last; row++) {
        i64 start = row * features;
        float scale = inverse_root_mean_square(x + start, features, eps, partial);
        float along = 0.0f;
        for (int i = threadIdx.x; i < features; i += blockDim.x) {
            along += to_float(x[start + i]) * (weight[i] + offset) * to_float(d_out[start + i]);
        }
        float back = block_reduce(along, Sum(), partial) * scale / float(features) * scale;
        for (int i = threadIdx.x; i < features; i += blockDim.x) {
            float value = to_float(x[start + i]);
            float d = to_float(d_out[start + i]);
            float gradient = scale * ((weight[i] + offset) * d - value * back);
            store(d_x + start + i, add ? to_float(d_x[start + i]) + gradient : gradient);
            share[i] += d * (value * scale);
        }
    }
}
