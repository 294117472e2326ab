// What kernels on tensor cores share: tiles of bf16 rows of HEAD_DIM, a multiple of 16, in shared memory, and products with them.
// A warp has 16 M rows of a result; lane l has rows l / 4 and l / 4 + 8 of each 16 and columns 2 (l % 4) and one more of each 8.

#define THREADS 128
// Eight elements more than a row has: rows that follow one another then begin in different banks.
#define ROW_BYTES ((HEAD_DIM + 8) * 2)

// Sends rows first .. first + ROWS to shared memory; rows from `end` on become 0.
template <int ROWS> DEVICE void send_rows(Shared to, const bf16* from, i64 stride, int first, int end) {
    const u32 words = HEAD_DIM / 8;
    from += i64(first) * stride;
    end -= first;
#pragma unroll
    for (u32 at = 0; at < ROWS * words; at += THREADS) {
        u32 row = (at + threadIdx.x) / words;
        u32 word = (at + threadIdx.x) % words;
        if (ROWS * words % THREADS == 0 || row < ROWS) {
            send_16(to + row * ROW_BYTES + word * 16, from + (row * u32(stride) + word * 8), int(row) < end);
        }
    }
}

// Where this lane begins to read: rows on the left of a product, and transposed ones on its right.
DEVICE u32 left_lane() { return threadIdx.x % 16 * ROW_BYTES + threadIdx.x % 32 / 16 * 16; }

// Rows on the right that are multiplied by rows.
DEVICE u32 right_lane() {
    u32 lane = threadIdx.x % 32;
    return (lane / 16 * 8 + lane % 8) * ROW_BYTES + lane / 8 % 2 * 16;
}

// Row and column of element [m][n][i] of a result.
DEVICE int row_of(int m, int i) { return m * 16 + i / 2 * 8 + int(threadIdx.x) % 32 / 4; }
DEVICE int column_of(int n, int i) { return n * 8 + int(threadIdx.x) % 4 * 2 + i % 2; }

// Does something for every [m][n][i].
template <int M, int N, class F> DEVICE void each(F f) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                f(m, n, i);
            }
        }
    }
}

template <int M, int N> DEVICE void clear(float (&d)[M][N][4]) {
    each<M, N>([&](int m, int n, int i) { d[m][n][i] = 0.0f; });
}

// d += a b^T over the features of one sixteenth, of 16 M rows a and 8 N rows b.
template <int M, int N> DEVICE void multiply_step(float (&d)[M][N][4], const u32 (&a)[M][4], Shared b) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
        u32 right[4];
        load_matrices(right, b + n * 8 * ROW_BYTES);
#pragma unroll
        for (int m = 0; m < M; m++) {
            multiply_16x8x16(d[m][n], a[m], right[0], right[1]);
            multiply_16x8x16(d[m][n + 1], a[m], right[2], right[3]);
        }
    }
}

// d = a b^T over features.
template <int M, int N> DEVICE void multiply_rows(float (&d)[M][N][4], Shared a, Shared b) {
    clear(d);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            load_matrices(left[m], a + m * 16 * ROW_BYTES + step * 32);
        }
        multiply_step(d, left, b + step * 32);
    }
}

// The same with 16 rows that a warp has loaded before.
template <int N> DEVICE void multiply_kept_rows(float (&d)[1][N][4], const u32 (&a)[HEAD_DIM / 16][1][4], Shared b) {
    clear(d);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        multiply_step(d, a[step], b + step * 32);
    }
}

// d += a b over the 8 N rows of b and 8 F of their features, where a is a result of this warp, rounded to bf16.
template <int M, int N, int F> DEVICE void multiply_weights(float (&d)[M][F][4], const float (&a)[M][N][4], Shared b) {
#pragma unroll
    for (int step = 0; step < N / 2; step++) {
        u32 left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            left[m][0] = pack_bf16(a[m][2 * step][0], a[m][2 * step][1]);
            left[m][1] = pack_bf16(a[m][2 * step][2], a[m][2 * step][3]);
            left[m][2] = pack_bf16(a[m][2 * step + 1][0], a[m][2 * step + 1][1]);
            left[m][3] = pack_bf16(a[m][2 * step + 1][2], a[m][2 * step + 1][3]);
        }
#pragma unroll
        for (int f = 0; f < F; f += 2) {
            u32 right[4];
            load_matrices_transposed(right, b + step * 16 * ROW_BYTES + f * 16);
#pragma unroll
            for (int m = 0; m < M; m++) {
                multiply_16x8x16(d[m][f], left[m], right[0], right[1]);
                multiply_16x8x16(d[m][f + 1], left[m], right[2], right[3]);
            }
        }
    }
}

// This lane's part of a row of a result, times `scale`; half 1 is the row 8 further.
template <int N> DEVICE void store_row(bf16* to, const float (&d)[N][4], int half, float scale) {
#pragma unroll
    for (int f = 0; f < N; f++) {
        *(u32*)(to + f * 8 + threadIdx.x % 4 * 2) = pack_bf16(d[f][2 * half] * scale, d[f][2 * half + 1] * scale);
    }
}

// This lane's part of the dot product of a row with one of a result.
template <int N> DEVICE float dot_row(const bf16* with, const float (&d)[N][4], int half) {
    float sum = 0.0f;
#pragma unroll
    for (int f = 0; f < N; f++) {
        u32 pair = *(const u32*)(with + f * 8 + threadIdx.x % 4 * 2);
        sum += to_float(bf16{(unsigned short)pair}) * d[f][2 * half];
        sum += to_float(bf16{(unsigned short)(pair >> 16)}) * d[f][2 * half + 1];
    }
    return sum;
}

// Over the four lanes that share a row.
template <class Op> DEVICE float row_reduce(float x, Op op) {
    x = op(x, shuffle_xor(x, 1));
    return op(x, shuffle_xor(x, 2));
}

// tanh, off by a few 1e-7.
DEVICE float tanh_near(float x) { return 1.0f - 2.0f * reciprocal_near(exp2_near(2.88539008f * x) + 1.0f); }
