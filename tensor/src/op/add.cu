// Sums of whole arrays.

// out += x, `[count]` both.
KERNEL add(ELEMENT* out, const ELEMENT* x, i64 count) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        store(out + i, to_float(out[i]) + to_float(x[i]));
    }
}

// out `[rows, cols]` += bias `[cols]` in every row; count is rows * cols.
KERNEL add_row(ELEMENT* out, const float* bias, i64 count, int cols) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        store(out + i, to_float(out[i]) + bias[i % cols]);
    }
}

// One share of the sums over rows for each `rows_each` of them: out `[shares, cols]` (+)= the columns of x `[rows, cols]`.
// One thread for a column, blockIdx.y for a share.
KERNEL column_sum(float* out, const ELEMENT* x, i64 rows, int cols, int rows_each, int add) {
    int col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) {
        return;
    }
    i64 first = i64(blockIdx.y) * rows_each;
    i64 last = first + rows_each < rows ? first + rows_each : rows;
    float sum = 0.0f;
    for (i64 row = first; row < last; row++) {
        sum += to_float(x[row * cols + col]);
    }
    float* to = out + i64(blockIdx.y) * cols + col;
    *to = add ? *to + sum : sum;
}

// The sum of squares of 32768 elements at a time, in f64; 256 threads.
KERNEL sum_of_squares(double* out, const ELEMENT* x, i64 count) {
    __shared__ double partial[32];
    i64 first = i64(blockIdx.x) * 32768;
    i64 last = first + 32768 < count ? first + 32768 : count;
    double sum = 0.0;
    for (i64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        double value = to_float(x[i]);
        sum += value * value;
    }
    sum = block_reduce(sum, Sum(), partial);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = sum;
    }
}

// total += the sum of all shares; one block of 256 threads.
KERNEL total(double* total, const double* shares, i64 count) {
    __shared__ double partial[32];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < count; i += blockDim.x) {
        sum += shares[i];
    }
    sum = block_reduce(sum, Sum(), partial);
    if (threadIdx.x == 0) {
        *total += sum;
    }
}
