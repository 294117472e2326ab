// What a Gram matrix `[n, n]` needs besides products: only its upper triangle is computed.

// Copies the upper triangle onto the lower one. Blocks of 32 x 8 threads over squares of 32; a square is turned in shared memory.
KERNEL mirror(float* gram, int n) {
    __shared__ float square[32][33];
    if (blockIdx.y > blockIdx.x) {
        return; // the whole block: a square below the diagonal
    }
    int col = blockIdx.x * 32 + threadIdx.x;
    for (int i = threadIdx.y; i < 32; i += 8) {
        int row = blockIdx.y * 32 + i;
        square[i][threadIdx.x] = row < n && col < n ? gram[i64(row) * n + col] : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += 8) {
        int row = blockIdx.x * 32 + i;    // of the copy
        int to = blockIdx.y * 32 + threadIdx.x;
        if (row < n && row > to) {
            gram[i64(row) * n + to] = square[threadIdx.x][i];
        }
    }
}

// out[i] = gram[i, i].
KERNEL diagonal(float* out, const float* gram, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = gram[i64(i) * n + i];
    }
}
