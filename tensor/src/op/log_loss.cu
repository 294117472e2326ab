// Losses over rows of logits `[tokens, vocab_size]` of f32, a block for each row: exponentials in f32, their sums in f64.
// A target of 0xffffffff is none, and such a row counts nothing.

#define NO_TARGET 0xffffffffu

struct Denominator {
    float largest;
    double rest; // ln(sum(e^(x - largest)))
};

// Of x * factor.
DEVICE Denominator log_sum_exp(const float* x, int vocab_size, float factor, float* partial, double* wide_partial) {
    float largest = -infinity();
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        largest = fmaxf(largest, x[i] * factor);
    }
    largest = block_reduce(largest, Max(), partial);
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        sum += expf(x[i] * factor - largest);
    }
    Denominator found = {largest, log(block_reduce(sum, Sum(), wide_partial))};
    return found;
}

// The place of the largest logit, the first where several are.
DEVICE int arg_max(const float* x, int vocab_size, float* partial, int* places) {
    float best = -infinity();
    int place = 0x7fffffff;
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        if (x[i] > best) {
            best = x[i];
            place = i;
        }
    }
    float largest = block_reduce(best, Max(), partial);
    int first = best == largest ? -place : -0x7fffffff;
    return -block_reduce(first, Max(), places);
}

// -ln softmax(logits)[target], and whether the target has the largest logit.
KERNEL token_losses(double* losses, u8* hits, const float* logits, const u32* targets, int vocab_size) {
    __shared__ float partial[32];
    __shared__ double wide_partial[32];
    __shared__ int places[32];
    const float* x = logits + i64(blockIdx.x) * vocab_size;
    u32 target = targets[blockIdx.x];
    Denominator d = log_sum_exp(x, vocab_size, 1.0f, partial, wide_partial);
    int top = arg_max(x, vocab_size, partial, places);
    if (threadIdx.x == 0) {
        bool some = target != NO_TARGET;
        losses[blockIdx.x] = some ? d.rest - double(x[target] - d.largest) : 0.0;
        hits[blockIdx.x] = some && u32(top) == target;
    }
}

// KL(reference || other) of each row, and whether both have their largest logit in one place.
KERNEL token_divergences(double* divergences, u8* agree, const float* reference, const float* other, int vocab_size) {
    __shared__ float partial[32];
    __shared__ double wide_partial[32];
    __shared__ int places[32];
    const float* y = reference + i64(blockIdx.x) * vocab_size;
    const float* x = other + i64(blockIdx.x) * vocab_size;
    Denominator of_y = log_sum_exp(y, vocab_size, 1.0f, partial, wide_partial);
    Denominator of_x = log_sum_exp(x, vocab_size, 1.0f, partial, wide_partial);
    double apart = of_x.rest - of_y.rest;
    double down = exp(-of_y.rest);
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        float p = expf(y[i] - of_y.largest);
        if (p > 0.0f) {
            sum += double(p) * (double((y[i] - of_y.largest) - (x[i] - of_x.largest)) + apart);
        }
    }
    sum = block_reduce(sum, Sum(), wide_partial) * down;
    int top_y = arg_max(y, vocab_size, partial, places);
    int top_x = arg_max(x, vocab_size, partial, places);
    if (threadIdx.x == 0) {
        divergences[blockIdx.x] = sum;
        agree[blockIdx.x] = top_y == top_x;
    }
}

// losses = weight * -ln softmax(logits)[target]; the logits become weight * (softmax(logits) - one_hot(target)).
KERNEL cross_entropy_backward(double* losses, float* logits, const u32* targets, const float* weights, int vocab_size) {
    __shared__ float partial[32];
    __shared__ double wide_partial[32];
    float* x = logits + i64(blockIdx.x) * vocab_size;
    u32 target = targets[blockIdx.x];
    float weight = target == NO_TARGET ? 0.0f : weights[blockIdx.x];
    if (weight == 0.0f) {
        for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
            x[i] = 0.0f;
        }
        if (threadIdx.x == 0) {
            losses[blockIdx.x] = 0.0;
        }
        return;
    }
    Denominator d = log_sum_exp(x, vocab_size, 1.0f, partial, wide_partial);
    float factor = weight * float(exp(-d.rest));
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = double(weight) * (d.rest - double(x[target] - d.largest));
    }
    __syncthreads(); // the target's logit is read before it is overwritten
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        float softmax = expf(x[i] - d.largest) * factor;
        x[i] = u32(i) == target ? softmax - weight : softmax;
    }
}

// losses = weight * T^2 KL(teacher || student) of softmax(logits / T); the student's logits become weight * T (q - p).
KERNEL forward_kl_backward(double* losses, float* student, const float* teacher, const float* weights, float temperature,
                           int vocab_size) {
    __shared__ float partial[32];
    __shared__ double wide_partial[32];
    float* x = student + i64(blockIdx.x) * vocab_size;
    const float* y = teacher + i64(blockIdx.x) * vocab_size;
    float weight = weights[blockIdx.x];
    float factor = 1.0f / temperature;
    if (weight == 0.0f) {
        for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
            x[i] = 0.0f;
        }
        if (threadIdx.x == 0) {
            losses[blockIdx.x] = 0.0;
        }
        return;
    }
    Denominator of_y = log_sum_exp(y, vocab_size, factor, partial, wide_partial);
    Denominator of_x = log_sum_exp(x, vocab_size, factor, partial, wide_partial);
    float apart = float(of_x.rest - of_y.rest);
    float p_scale = float(exp(-of_y.rest));
    float q_scale = float(exp(-of_x.rest));
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocab_size; i += blockDim.x) {
        float down_x = x[i] * factor - of_x.largest;
        float down_y = y[i] * factor - of_y.largest;
        float q = expf(down_x) * q_scale;
        float p = expf(down_y) * p_scale;
        if (p > 0.0f) {
            sum += p * (down_y - down_x + apart);
        }
        x[i] = weight * temperature * (q - p);
    }
    sum = block_reduce(sum, Sum(), wide_partial);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = double(weight) * double(temperature) * double(temperature) * sum;
    }
}
