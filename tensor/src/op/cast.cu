// Between the two widths activations are stored in.
KERNEL narrow(bf16* out, const float* x, i64 count) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        out[i] = to_bf16(x[i]);
    }
}

KERNEL widen(float* out, const bf16* x, i64 count) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        out[i] = to_float(x[i]);
    }
}

// x as the sum of two: the nearest bf16 and the nearest to what is left.
KERNEL split(bf16* high, bf16* low, const float* x, i64 count) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        bf16 nearest = to_bf16(x[i]);
        high[i] = nearest;
        low[i] = to_bf16(x[i] - to_float(nearest));
    }
}
