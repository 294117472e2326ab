// Coordinate descent: each code in turn to the best value given all others, and the energies that judge it.
// Legend: w, pull, codes `[rows, n]`; H = h_scale * gram + diagonal `[n, n]`; scale, zero, min `[rows, groups]`.

// out[row, col] = x[row, col] * diagonal[col]; one thread for an element.
KERNEL times_diagonal(float* out, const float* x, const float* diagonal, i64 count, int n) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        out[i] = __fmul_rn(x[i], diagonal[i % n]);
    }
}

// The sum of x * y over 16 rows each, in f64: x columns from .. from + width of `[rows, n]`, y `[rows, width]`. 256 threads.
KERNEL row_products(double* out, const float* x, const float* y, int rows, int n, int from, int width) {
    __shared__ double partial[32];
    double sum = 0.0;
    for (int row = blockIdx.x * 16; row < rows && row < int(blockIdx.x) * 16 + 16; row++) {
        for (int col = threadIdx.x; col < width; col += blockDim.x) {
            sum += double(x[i64(row) * n + from + col]) * double(y[i64(row) * width + col]);
        }
    }
    sum = block_reduce(sum, Sum(), partial);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = sum;
    }
}

#define BLOCK 128
#define PARTS (BLOCK / 32) // columns of a lane: lane, lane + 32, ...
#define ROWS 2             // rows of a warp

// Columns start .. start + width of 16 rows a block of 8 warps, as `round_block` takes them: pull is E H of the errors E as they
// are; a column's code becomes that nearest to its best value, and what that changes goes to the columns after it in the block.
// `change` `[rows, width]`, rows `stride` apart, gets the change of E, which other columns still have to take; pull here takes the
// diagonal's share of it.
// Shared: the block of H, 128 x 128 floats.
KERNEL __launch_bounds__(256) descend_block(float* change, u8* codes, float* pull, const float* gram, const float* diagonal,
                                            const float* scale, const float* zero, const float* min, int rows, int n, int start,
                                            int width, int stride, int group_size, int groups, float max_code,
                                            float h_scale) {
    DYNAMIC_SHARED(shared);
    float* triangle = (float*)shared; // [BLOCK, BLOCK]
    for (int at = threadIdx.x; at < BLOCK * BLOCK; at += blockDim.x) {
        int row = at / BLOCK;
        int col = at % BLOCK;
        bool inside = row < width && col < width && row <= col;
        float h = inside ? __fmul_rn(gram[i64(start + row) * n + start + col], h_scale) : 0.0f;
        triangle[at] = inside && row == col ? __fadd_rn(h, diagonal[start + col]) : h;
    }
    __syncthreads();

    int lane = threadIdx.x % 32;
    int first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
    float x[ROWS][PARTS], s[ROWS][PARTS], per_s[ROWS][PARTS], z[ROWS][PARTS], m[ROWS][PARTS];
    float before[ROWS][PARTS], moved[ROWS][PARTS], curvature[PARTS], per_curvature[PARTS];
    int code[ROWS][PARTS];
    for (int i = 0; i < PARTS; i++) {
        int col = lane + 32 * i;
        bool inside = col < width;
        curvature[i] = inside ? triangle[col * BLOCK + col] : 1.0f;
        per_curvature[i] = reciprocal_of(curvature[i]);
        for (int r = 0; r < ROWS; r++) {
            bool real = inside && first + r < rows;
            i64 group = i64(first + r) * groups + (start + col) / group_size;
            i64 at = i64(first + r) * n + start + col;
            x[r][i] = real ? pull[at] : 0.0f;
            s[r][i] = real ? scale[group] : 0.0f;
            per_s[r][i] = reciprocal_of(s[r][i]);
            z[r][i] = real ? zero[group] : 0.0f;
            m[r][i] = real ? min[group] : 0.0f;
            code[r][i] = real ? codes[at] : 0;
            before[r][i] = value_of(float(code[r][i]), s[r][i], z[r][i], m[r][i]);
            moved[r][i] = 0.0f;
        }
    }
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
        for (int owner = 0; owner < 32 && part * 32 + owner < width; owner++) {
            const float* couplings = triangle + (part * 32 + owner) * BLOCK;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                // Every lane moves its own column of this part; the owner's is the one that counts.
                float by_pull = quotient(x[r][part], curvature[part], per_curvature[part]);
                float best = __fadd_rn(before[r][part], by_pull);
                float steps = quotient(__fadd_rn(best, m[r][part]), s[r][part], per_s[r][part]);
                int found = nearest_code(steps, z[r][part], max_code);
                float value = value_of(float(found), s[r][part], z[r][part], m[r][part]);
                float by = __fsub_rn(before[r][part], value);
                if (lane == owner) {
                    code[r][part] = found;
                    moved[r][part] = by;
                }
                by = shuffle_from(by, owner);
#pragma unroll
                for (int i = part; i < PARTS; i++) {
                    if (i > part || lane > owner) {
                        x[r][i] = __fadd_rn(x[r][i], __fmul_rn(by, couplings[lane + 32 * i]));
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; first + r < rows && i < PARTS; i++) {
            int col = lane + 32 * i;
            if (col < width) {
                change[i64(first + r) * stride + col] = moved[r][i];
                i64 at = i64(first + r) * n + start + col;
                codes[at] = u8(code[r][i]);
                pull[at] = __fadd_rn(pull[at], __fmul_rn(moved[r][i], diagonal[start + col]));
            }
        }
    }
}
