// Error feedback: the Hessian as the factorisation reads it, its factor as the pass reads it, and the pass over 128 columns.
// Legend: gram, upper `[n, n]`, w `[rows, n]` and codes `[rows, n]`; scale, zero, min `[rows, groups]`. WIDE: f64, or f32 where
// memory is short.

// out = J H J, where H is the Gram matrix with rows and columns in `order`, off-diagonals times `off_diagonal` and the diagonal
// over its mean, damped; J turns the order around. Symmetric, so the same by rows and by columns. 32 x 8 threads.
KERNEL reversed_hessian(WIDE* out, const float* gram, const u32* order, int n, float off_diagonal, double mean,
                        double damping) {
    int col = blockIdx.x * 32 + threadIdx.x;
    int row = blockIdx.y * 8 + threadIdx.y;
    if (col >= n || row >= n) {
        return;
    }
    float value = gram[i64(order[n - 1 - row]) * n + order[n - 1 - col]];
    out[i64(row) * n + col] = row == col ? float(double(value) / mean + damping) : value * off_diagonal;
}

// Zeros above the diagonal of a matrix stored by columns. 32 x 8 threads.
KERNEL clear_above(WIDE* triangle, int n) {
    int row = blockIdx.x * 32 + threadIdx.x;
    int col = blockIdx.y * 8 + threadIdx.y;
    if (row < col && col < n) {
        triangle[i64(col) * n + row] = 0;
    }
}

#define CORNER 64
#define CORNER_STRIDE (CORNER + 1)

// The inverses of the 64 x 64 lower triangles on the diagonal of one stored by columns, in place; a block for each, a thread for each
// column of its inverse. Shared: the triangle and its inverse, 64 x 65 numbers each.
KERNEL __launch_bounds__(64) invert_corners(WIDE* triangle, int n) {
    DYNAMIC_SHARED(shared);
    WIDE* a = (WIDE*)shared;
    WIDE* inverse = a + CORNER * CORNER_STRIDE;
    int first = blockIdx.x * CORNER;
    int size = n - first < CORNER ? n - first : CORNER;
    int mine = threadIdx.x;
    for (int col = 0; col < size; col++) {
        if (mine < size) {
            a[mine * CORNER_STRIDE + col] = triangle[i64(first + col) * n + first + mine];
        }
    }
    __syncthreads();
    if (mine < size) {
        inverse[mine * CORNER_STRIDE + mine] = WIDE(1) / a[mine * CORNER_STRIDE + mine];
        for (int row = mine + 1; row < size; row++) {
            WIDE sum = 0;
            for (int k = mine; k < row; k++) {
                sum += a[row * CORNER_STRIDE + k] * inverse[k * CORNER_STRIDE + mine];
            }
            inverse[row * CORNER_STRIDE + mine] = -sum / a[row * CORNER_STRIDE + row];
        }
    }
    __syncthreads();
    for (int col = 0; col < size; col++) {
        if (mine >= col && mine < size) {
            triangle[i64(first + col) * n + first + mine] = inverse[mine * CORNER_STRIDE + col];
        }
    }
}

// upper = J L^-1 J for the lower triangular L^-1 stored by columns; zero below the diagonal. 32 x 8 threads, squares of 32 turned
// in shared memory so that both sides move along rows.
KERNEL reversed_inverse(float* upper, const WIDE* inverse, int n) {
    __shared__ float square[32][33];
    // Square (blockIdx.y, blockIdx.x) of `upper`: element (row, col) stands at column n-1-col of the inverse, row n-1-row.
    for (int i = threadIdx.y; i < 32; i += 8) {
        int row = blockIdx.y * 32 + threadIdx.x;
        int col = blockIdx.x * 32 + i;
        bool inside = row < n && col < n && row <= col;
        square[i][threadIdx.x] = inside ? float(inverse[i64(n - 1 - col) * n + (n - 1 - row)]) : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
        int row = blockIdx.y * 32 + i;
        int col = blockIdx.x * 32 + threadIdx.x;
        if (row < n && col < n) {
            upper[i64(row) * n + col] = square[threadIdx.x][i];
        }
    }
}

// out[row, j] = w[row, order[j]], of any width; one thread for an element.
KERNEL gather_columns(float* out, const float* w, const u32* order, i64 count, int n) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        out[i] = w[i / n * n + order[i % n]];
    }
}

#define BLOCK 128
#define PARTS (BLOCK / 32) // columns of a lane: lane, lane + 32, ...
#define ROWS 2             // rows of a warp

// Rounds columns start .. start + width of w (columns in `order`) for 16 rows a block of 8 warps: a lane holds four columns of a
// row, each column's error goes to the columns after it in the block. `errors` `[rows, width]`, rows `stride` apart, gets what later
// columns still have to take; codes stand at their own columns; losses `[rows]` grow by (w - q)^2 / pivot^2. Shared: the triangle, 128 x 128 floats.
//
// A code's value is computed without fused operations, as the files' readers compute it.
// Frantar et al., arXiv:2210.17323, Algorithm 1.
KERNEL __launch_bounds__(256) round_block(float* errors, u8* codes, double* losses, const float* w, const float* upper,
                                          const u32* order, const float* scale, const float* zero, const float* min, int rows,
                                          int n, int start, int width, int stride, int group_size, int groups,
                                          float max_code) {
    DYNAMIC_SHARED(shared);
    float* triangle = (float*)shared; // [BLOCK, BLOCK]
    for (int at = threadIdx.x; at < BLOCK * BLOCK; at += blockDim.x) {
        int row = at / BLOCK;
        int col = at % BLOCK;
        bool inside = row < width && col < width && row <= col;
        triangle[at] = inside ? upper[i64(start + row) * n + start + col] : 0.0f;
    }
    __syncthreads();

    int lane = threadIdx.x % 32;
    int first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
    float x[ROWS][PARTS], s[ROWS][PARTS], per_s[ROWS][PARTS], z[ROWS][PARTS], m[ROWS][PARTS], error[ROWS][PARTS];
    float pivot[PARTS], per_pivot[PARTS];
    int code[ROWS][PARTS], place[PARTS];
    float loss[ROWS] = {0.0f, 0.0f};
    for (int i = 0; i < PARTS; i++) {
        int col = lane + 32 * i;
        bool inside = col < width;
        place[i] = inside ? int(order[start + col]) : 0;
        pivot[i] = inside ? triangle[col * BLOCK + col] : 1.0f;
        per_pivot[i] = reciprocal_of(pivot[i]);
        for (int r = 0; r < ROWS; r++) {
            bool real = inside && first + r < rows;
            i64 group = i64(first + r) * groups + place[i] / group_size;
            x[r][i] = real ? w[i64(first + r) * n + start + col] : 0.0f;
            s[r][i] = real ? scale[group] : 0.0f;
            per_s[r][i] = reciprocal_of(s[r][i]);
            z[r][i] = real ? zero[group] : 0.0f;
            m[r][i] = real ? min[group] : 0.0f;
            error[r][i] = 0.0f;
            code[r][i] = 0;
        }
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        for (int owner = 0; owner < 32 && part * 32 + owner < width; owner++) {
            const float* couplings = triangle + (part * 32 + owner) * BLOCK;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // Every lane rounds its own column of this part; the owner's is the one that counts.
                float steps = quotient(__fadd_rn(x[r][part], m[r][part]), s[r][part], per_s[r][part]);
                int found = nearest_code(steps, z[r][part], max_code);
                float value = value_of(float(found), s[r][part], z[r][part], m[r][part]);
                float lost = quotient(__fsub_rn(x[r][part], value), pivot[part], per_pivot[part]);
                if (lane == owner) {
                    code[r][part] = found;
                    error[r][part] = lost;
                    loss[r] += lost * lost;
                }
                lost = shuffle_from(lost, owner);
#pragma unroll
                for (int i = part; i < PARTS; i++) {
                    if (i > part || lane > owner) {
                        x[r][i] = __fsub_rn(x[r][i], __fmul_rn(lost, couplings[lane + 32 * i]));
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float sum = warp_reduce(loss[r], Sum());
        if (first + r >= rows) {
            continue;
        }
        if (lane == 0) {
            losses[first + r] += double(sum);
        }
        for (int i = 0; i < PARTS; i++) {
            if (lane + 32 * i < width) {
                errors[i64(first + r) * stride + lane + 32 * i] = error[r][i];
                codes[i64(first + r) * n + place[i]] = u8(code[r][i]);
            }
        }
    }
}
