// What several kernels share. Sums have one order, fixed by the number of threads of a block; no atomics.

struct Sum {
    template <class N> DEVICE N operator()(N a, N b) const { return a + b; }
};

struct Max {
    template <class N> DEVICE N operator()(N a, N b) const { return a > b ? a : b; }
};

DEVICE void store(float* to, float x) { *to = x; }
DEVICE void store(bf16* to, float x) { *to = to_bf16(x); }

// a / b to the nearest, by way of the reciprocal of b, which is 0 where b is; no division, and no branch.
// Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990.
DEVICE float quotient(float a, float b, float reciprocal) {
    float near = __fmul_rn(a, reciprocal);
    return __fmaf_rn(__fmaf_rn(-b, near, a), reciprocal, near);
}

DEVICE float reciprocal_of(float b) { return b == 0.0f ? 0.0f : __fdiv_rn(1.0f, b); }

// The code nearest to so many steps from `zero`, ties to even.
DEVICE int nearest_code(float steps, float zero, float max_code) {
    return __float2int_rn(fminf(fmaxf(steps, -zero), max_code - zero)) + __float2int_rn(zero);
}

// The value of a code, without fused operations, as the files' readers compute it.
DEVICE float value_of(float code, float scale, float zero, float min) {
    return __fsub_rn(__fmul_rn(scale, __fsub_rn(code, zero)), min);
}

// Over the 32 lanes of a warp; every lane gets the result.
template <class N, class Op> DEVICE N warp_reduce(N x, Op op) {
    for (int mask = 16; mask > 0; mask /= 2) {
        x = op(x, shuffle_xor(x, mask));
    }
    return x;
}

// Over all threads of a block of whole warps; every thread gets the result. `partial` is shared, one for each warp.
template <class N, class Op> DEVICE N block_reduce(N x, Op op, N* partial) {
    x = warp_reduce(x, op);
    __syncthreads(); // whoever still reads what an earlier reduction left in `partial`
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = x;
    }
    __syncthreads();
    N total = partial[0];
    for (u32 warp = 1; warp < blockDim.x / 32; warp++) {
        total = op(total, partial[warp]);
    }
    return total;
}
