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
