// Codes on a grid: the search for the scales of grouped integers, the nearest codes, what codes decode to.
// Legend: w `[rows, cols]`, codes `[rows, cols]`; scale, zero, min `[rows, groups]`, a group being `group_size` columns.

// How scales are stored.
#define STORED_F16 0
#define STORED_BF16 1

// Of the patterns around one: 0 is itself, 1 the next smaller, 2 the next larger, none above the largest.
DEVICE int neighbour(int pattern, int which, int largest) {
    pattern = pattern < largest ? pattern : largest;
    if (which == 1) {
        return pattern > 0 ? pattern - 1 : 0;
    }
    return which == 2 && pattern < largest ? pattern + 1 : pattern;
}

// The f16 nearest to x, ties to even, or a neighbour of it in magnitude; finite.
DEVICE float near_in_f16(float x, int which) {
    u32 bits = __float_as_uint(x);
    u32 wide = bits & 0x7fffffff;
    int half = 0x7bff;
    if (wide < 0x38800000) { // below 2^-14: multiples of 2^-24
        half = __float2int_rn(__uint_as_float(wide) * 16777216.0f);
    } else if (wide < 0x47800000) { // below 2^16
        u32 from = wide - 0x38000000;
        half = int((from + 0xfff + (from >> 13 & 1)) >> 13);
    }
    half = neighbour(half, which, 0x7bff);
    float found = half < 0x400 ? float(half) * 5.9604644775390625e-8f : __uint_as_float((u32(half) << 13) + 0x38000000);
    return bits >> 31 ? -found : found;
}

DEVICE float near_in_bf16(float x, int which) {
    u32 bits = to_bf16(x).bits;
    int magnitude = neighbour(int(bits & 0x7fff), which, 0x7f7f);
    return __uint_as_float((bits & 0x8000) << 16 | u32(magnitude) << 16);
}

// `code - zero` of the code nearest to `steps`, ties to even.
DEVICE float level(float steps, float zero, float top) {
    float bounded = fminf(fmaxf(steps, -zero), top - zero);
    return __fsub_rn(__fadd_rn(bounded, 12582912.0f), 12582912.0f); // 1.5 * 2^23 leaves no fraction
}

#define MOST_WAYS 3 // candidates of a lane

// Scale and zero of each group: the least `sum importance * (x - scale * (code - zero))^2` over many ranges, each with the scale
// fitted to its codes in closed form, then over the stored scales around the fitted one. One warp for a group, one lane for each of
// at most 32 reaches; a lane's sums go from the first column to the last without fused operations: the CPU's bits. `signs` is 2 where
// the zero stays in the middle, else 0: then three zeros are tried. Blocks of 8 warps.
KERNEL __launch_bounds__(256) search_groups(float* scale, float* zero, const float* w, const float* importance,
                                            const float* reaches, i64 count, int cols, int group_size, int weighted, int signs,
                                            int stored, int reach_count, float middle, float top) {
    i64 group = i64(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (group >= count) {
        return; // the whole warp
    }
    const float* x = w + group * group_size;
    const float* weights = importance + group * group_size % cols;
    float largest = 0.0f, low = 0.0f, high = 0.0f;
    for (int i = 0; i < group_size; i++) {
        largest = fabsf(x[i]) > fabsf(largest) ? x[i] : largest;
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    int ways = signs == 2 ? 2 : MOST_WAYS;
    float reach = lane < reach_count ? reaches[lane] : 1.0f;
    float inverse[MOST_WAYS], zeros[MOST_WAYS], xl[MOST_WAYS], ll[MOST_WAYS];
    for (int way = 0; way < MOST_WAYS; way++) {
        float sign = way == 0 ? -1.0f : 1.0f;
        float shift = way == 0 ? 0.0f : way == 1 ? -1.0f : 1.0f;
        xl[way] = ll[way] = 0.0f;
        if (signs == 2) {
            zeros[way] = middle;
            inverse[way] = __fdiv_rn(__fmul_rn(__fmul_rn(sign, reach), middle), largest);
        } else {
            inverse[way] = __fdiv_rn(__fmul_rn(reach, top), __fsub_rn(high, low));
            float at = __fdiv_rn(__fmul_rn(-low, inverse[way]), reach);
            zeros[way] = fminf(fmaxf(float(__float2int_rn(at)) + shift, 0.0f), top);
        }
    }
    for (int i = 0; i < group_size; i++) {
        float value = x[i];
        float weight = weighted ? weights[i] : 1.0f;
        float product = __fmul_rn(weight, value);
#pragma unroll
        for (int way = 0; way < MOST_WAYS; way++) {
            if (way < ways) {
                float found = level(__fmul_rn(value, inverse[way]), zeros[way], top);
                xl[way] = __fadd_rn(xl[way], __fmul_rn(product, found));
                ll[way] = __fadd_rn(ll[way], __fmul_rn(__fmul_rn(weight, found), found));
            }
        }
    }
    // By how much the weighted squared error lies below that of all zeros; of equal ones the first counts.
    float score = 0.0f, best = 0.0f, best_zero = middle;
    for (int way = 0; way < ways; way++) {
        float fitted = __fdiv_rn(xl[way], ll[way]);
        float found = __fmul_rn(fitted, xl[way]);
        if (lane < reach_count && ll[way] > 0.0f && found > score) {
            score = found;
            best = fitted;
            best_zero = zeros[way];
        }
    }
    int from = lane;
    for (int mask = 16; mask > 0; mask /= 2) {
        float other_score = shuffle_xor(score, mask), other = shuffle_xor(best, mask), other_zero = shuffle_xor(best_zero, mask);
        int other_from = shuffle_xor(from, mask);
        if (other_score > score || (other_score == score && other_from < from)) {
            score = other_score;
            best = other;
            best_zero = other_zero;
            from = other_from;
        }
    }
    int which = lane < 3 ? lane : 0;
    float chosen = stored == STORED_F16 ? near_in_f16(best, which) : stored == STORED_BF16 ? near_in_bf16(best, which) : best;
    float steps = chosen == 0.0f ? 0.0f : __fdiv_rn(1.0f, chosen);
    float error = 0.0f;
    for (int i = 0; i < group_size; i++) {
        float off = __fsub_rn(x[i], __fmul_rn(chosen, level(__fmul_rn(x[i], steps), best_zero, top)));
        error = __fadd_rn(error, __fmul_rn(__fmul_rn(weighted ? weights[i] : 1.0f, off), off));
    }
    if (!(error < infinity()) || lane >= 3) {
        error = infinity();
        chosen = 0.0f;
    }
    from = lane;
    for (int mask = 2; mask > 0; mask /= 2) {
        float other_error = shuffle_xor(error, mask), other = shuffle_xor(chosen, mask);
        int other_from = shuffle_xor(from, mask);
        if (other_error < error || (other_error == error && other_from < from)) {
            error = other_error;
            chosen = other;
            from = other_from;
        }
    }
    if (lane == 0) {
        scale[group] = chosen;
        zero[group] = best_zero;
    }
}

// The nearest code of each weight; one thread for an element.
KERNEL nearest_codes(u8* codes, const float* w, const float* scale, const float* zero, const float* min, i64 count, int cols,
                     int group_size, int groups, float max_code) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        i64 group = i / cols * groups + i % cols / group_size;
        float s = scale[group], z = zero[group];
        float steps = s == 0.0f ? 0.0f : __fdiv_rn(__fadd_rn(w[i], min[group]), s);
        codes[i] = u8(nearest_code(steps, z, max_code));
    }
}

// The values of codes.
KERNEL decode(ELEMENT* out, const u8* codes, const float* scale, const float* zero, const float* min, i64 count, int cols,
              int group_size, int groups) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        i64 group = i / cols * groups + i % cols / group_size;
        store(out + i, value_of(float(codes[i]), scale[group], zero[group], min[group]));
    }
}

// w less the values of its codes.
KERNEL rounding_errors(float* out, const float* w, const u8* codes, const float* scale, const float* zero, const float* min,
                       i64 count, int cols, int group_size, int groups) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) {
        i64 group = i / cols * groups + i % cols / group_size;
        out[i] = __fsub_rn(w[i], value_of(float(codes[i]), scale[group], zero[group], min[group]));
    }
}
