// Products with one number, and soft bounds, in place.

// x *= factor, `[count]`.
KERNEL scale(ELEMENT* x, i64 count, float factor) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        store(x + i, factor * to_float(x[i]));
    }
}

// x = cap tanh(x / cap), `[count]`.
KERNEL soft_cap(ELEMENT* x, i64 count, float cap) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        store(x + i, cap * tanhf(to_float(x[i]) / cap));
    }
}
