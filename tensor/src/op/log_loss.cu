// Losses over rows of logits `[tokens, vocab_size]` of f32, a block for each row: exponentials in f32, their sums in f64. A row is
// read sixteen bytes at a time, once for what its softmax needs and once more for what is made of it. ELEMENT is what a gradient
// of logits is stored as. A target of 0xffffffff is none, and such a row counts nothing.

#define NO_TARGET 0xffffffffu

struct __align__(16) Four {
    float at[4];
};

struct __align__(8) FourNarrow {
    u32 pair[2];
};

// Elements 4 i to 4 i + 3 of a row, -infinity past its end. Rows of a whole number of fours begin at multiples of sixteen bytes.
DEVICE Four four_of(const float* row, int i, int count) {
    if (count % 4 == 0) {
        return ((const Four*)row)[i];
    }
    Four x;
    for (int k = 0; k < 4; k++) {
        x.at[k] = 4 * i + k < count ? row[4 * i + k] : -infinity();
    }
    return x;
}

DEVICE void put_whole(float* row, int i, const Four& x) { ((Four*)row)[i] = x; }

DEVICE void put_whole(bf16* row, int i, const Four& x) {
    FourNarrow narrow = {{pack_bf16(x.at[0], x.at[1]), pack_bf16(x.at[2], x.at[3])}};
    ((FourNarrow*)row)[i] = narrow;
}

DEVICE void put_four(ELEMENT* row, int i, int count, const Four& x) {
    if (count % 4 == 0) {
        put_whole(row, i, x);
        return;
    }
    for (int k = 0; k < 4 && 4 * i + k < count; k++) {
        store(row + 4 * i + k, x.at[k]);
    }
}

// What the threads of a block show one another.
struct Shown {
    float narrow[32];
    double wide[32];
    int places[32];
};

// softmax(x * factor) is e^(x * factor - largest - rest).
struct Softmax {
    float largest;
    double rest; // ln(sum(e^(x * factor - largest)))
    int place;   // of the largest, the first where several are
};

DEVICE Softmax softmax_of(const float* row, int count, float factor, Shown* shown) {
    float largest = -infinity();
    int place = 0x7fffffff;
    double sum = 0.0;
    for (int i = threadIdx.x; i < (count + 3) / 4; i += blockDim.x) {
        Four x = four_of(row, i, count);
        float top = largest;
        for (int k = 0; k < 4; k++) {
            x.at[k] *= factor;
            if (x.at[k] > top) {
                top = x.at[k];
                place = 4 * i + k;
            }
        }
        if (top > largest) {
            sum *= exp(double(largest) - double(top)); // in f64: a divergence of near equals is made of what this leaves
            largest = top;
        }
        float down = largest > -infinity() ? largest : 0.0f;
        for (int k = 0; k < 4; k++) {
            sum += expf(x.at[k] - down);
        }
    }
    float top = block_reduce(largest, Max(), shown->narrow);
    if (largest > -infinity()) {
        sum *= exp(double(largest) - double(top));
    }
    sum = block_reduce(sum, Sum(), shown->wide);
    int first = largest == top ? -place : -0x7fffffff;
    Softmax found = {top, log(sum), -block_reduce(first, Max(), shown->places)};
    return found;
}

// -ln softmax(logits)[target], and whether the target has the largest logit.
KERNEL token_losses(double* losses, u8* hits, const float* logits, const u32* targets, int vocab_size) {
    __shared__ Shown shown;
    const float* x = logits + i64(blockIdx.x) * vocab_size;
    u32 target = targets[blockIdx.x];
    Softmax q = softmax_of(x, vocab_size, 1.0f, &shown);
    if (threadIdx.x == 0) {
        bool some = target != NO_TARGET;
        losses[blockIdx.x] = some ? q.rest - double(x[target] - q.largest) : 0.0;
        hits[blockIdx.x] = some && u32(q.place) == target;
    }
}

// KL(reference || other) of each row, and whether both have their largest logit in one place.
KERNEL token_divergences(double* divergences, u8* agree, const float* reference, const float* other, int vocab_size) {
    __shared__ Shown shown;
    const float* y = reference + i64(blockIdx.x) * vocab_size;
    const float* x = other + i64(blockIdx.x) * vocab_size;
    Softmax p = softmax_of(y, vocab_size, 1.0f, &shown);
    Softmax q = softmax_of(x, vocab_size, 1.0f, &shown);
    double apart = q.rest - p.rest;
    double sum = 0.0;
    for (int i = threadIdx.x; i < (vocab_size + 3) / 4; i += blockDim.x) {
        Four of_y = four_of(y, i, vocab_size);
        Four of_x = four_of(x, i, vocab_size);
        for (int k = 0; k < 4; k++) {
            float down_y = of_y.at[k] - p.largest;
            float share = expf(down_y);
            if (share > 0.0f) {
                sum += double(share) * (double(down_y - (of_x.at[k] - q.largest)) + apart);
            }
        }
    }
    sum = block_reduce(sum, Sum(), shown.wide) * exp(-p.rest);
    if (threadIdx.x == 0) {
        divergences[blockIdx.x] = sum;
        agree[blockIdx.x] = p.place == q.place;
    }
}

// A token of the vocabulary: the student's q, the derivative g of a divergence by q, and what the divergence counts of it.
struct Outcome {
    float q;
    float g;
    float loss;
};

// How two predictions are told apart: 0 KL(p || q), 1 KL(q || p), 2 the generalised Jensen-Shannon divergence.
struct Measure {
    int kind;
    float beta;
    float q_scale;
    float p_scale;
    float of_q; // the logarithms of the denominators
    float of_p;
};

// x and y are the student's and the teacher's logits less their largest.
DEVICE Outcome outcome(const Measure& measure, float x, float y) {
    float q = expf(x) * measure.q_scale;
    Outcome found = {q, 0.0f, 0.0f};
    if (measure.kind == 0) {
        float p = expf(y) * measure.p_scale;
        found.g = p; // of KL(p || q) what is taken from q
        found.loss = p > 0.0f ? p * (y - x + (measure.of_q - measure.of_p)) : 0.0f;
    } else if (measure.kind == 1) {
        found.g = q > 0.0f ? x - y + (measure.of_p - measure.of_q) : 0.0f;
        found.loss = q * found.g;
    } else {
        float p = expf(y) * measure.p_scale;
        float m = measure.beta * p + (1.0f - measure.beta) * q;
        float ln_m = m > 0.0f ? logf(m) : 0.0f;
        found.g = q > 0.0f ? (1.0f - measure.beta) * (x - measure.of_q - ln_m) : 0.0f;
        found.loss = q * found.g + (p > 0.0f ? measure.beta * p * (y - measure.of_p - ln_m) : 0.0f);
    }
    return found;
}

// losses = weight * ((1 - told) T^2 D + told * CE): D of softmax(logits / T) of teacher and student, CE of the target, which is not
// read where `told` is 0; nor is the teacher where it is 1. d_logits gets its gradient by the products the student's logits were
// made of: logits = cap(products * factor), cap 0 being none. It may be the student's logits. With weight 0 nothing is read.
KERNEL lesson_backward(double* losses, ELEMENT* d_logits, const float* student, const float* teacher, const u32* targets,
                       const float* weights, int kind, float beta, float temperature, float told, float cap, float factor,
                       int vocab_size) {
    __shared__ Shown shown;
    const float* x = student + i64(blockIdx.x) * vocab_size;
    const float* y = teacher + i64(blockIdx.x) * vocab_size;
    ELEMENT* d_x = d_logits + i64(blockIdx.x) * vocab_size;
    int fours = (vocab_size + 3) / 4;
    float weight = weights[blockIdx.x];
    u32 target = told > 0.0f ? targets[blockIdx.x] : NO_TARGET;
    if (weight == 0.0f) {
        Four zeros = {};
        for (int i = threadIdx.x; i < fours; i += blockDim.x) {
            put_four(d_x, i, vocab_size, zeros);
        }
        if (threadIdx.x == 0) {
            losses[blockIdx.x] = 0.0;
        }
        return;
    }
    float of_target = target != NO_TARGET ? x[target] : 0.0f; // before it is overwritten
    float warmth = 1.0f / temperature;
    double loss = 0.0;

    // Cross-entropy.
    Softmax plain = {0.0f, 0.0, 0};
    float plain_scale = 0.0f;
    float one = 0.0f;
    if (target != NO_TARGET) {
        plain = softmax_of(x, vocab_size, 1.0f, &shown);
        one = weight * told;
        plain_scale = one * float(exp(-plain.rest));
        loss = double(one) * (plain.rest - double(of_target - plain.largest));
    }

    // The divergence.
    Softmax q = {0.0f, 0.0, 0};
    Softmax p = {0.0f, 0.0, 0};
    Measure measure = {kind, beta, 0.0f, 0.0f, 0.0f, 0.0f};
    float taught = weight * (1.0f - told) * temperature;
    float mean = 0.0f;
    if (taught != 0.0f) {
        p = softmax_of(y, vocab_size, warmth, &shown);
        q = target != NO_TARGET && warmth == 1.0f ? plain : softmax_of(x, vocab_size, warmth, &shown);
        measure.q_scale = float(exp(-q.rest));
        measure.p_scale = float(exp(-p.rest));
        measure.of_q = float(q.rest);
        measure.of_p = float(p.rest);
        double sum = 0.0;
        for (int i = threadIdx.x; i < fours && kind != 0; i += blockDim.x) {
            Four of_x = four_of(x, i, vocab_size);
            Four of_y = four_of(y, i, vocab_size);
            for (int k = 0; k < 4; k++) {
                Outcome of = outcome(measure, of_x.at[k] * warmth - q.largest, of_y.at[k] * warmth - p.largest);
                sum += of.q * of.g;
            }
        }
        mean = kind != 0 ? float(block_reduce(sum, Sum(), shown.wide)) : 0.0f;
    }

    double divergence = 0.0;
    for (int i = threadIdx.x; i < fours; i += blockDim.x) {
        Four of_x = four_of(x, i, vocab_size);
        Four d = {};
        if (taught != 0.0f) {
            Four of_y = four_of(y, i, vocab_size);
            float part = 0.0f;
            for (int k = 0; k < 4; k++) {
                Outcome of = outcome(measure, of_x.at[k] * warmth - q.largest, of_y.at[k] * warmth - p.largest);
                d.at[k] = taught * (kind == 0 ? of.q - of.g : of.q * (of.g - mean));
                part += of.loss;
            }
            divergence += part;
        }
        for (int k = 0; k < 4; k++) {
            if (target != NO_TARGET) {
                d.at[k] += expf(of_x.at[k] - plain.largest) * plain_scale - (u32(4 * i + k) == target ? one : 0.0f);
            }
            float bent = cap > 0.0f ? of_x.at[k] / cap : 0.0f;
            d.at[k] *= factor * (1.0f - bent * bent);
        }
        put_four(d_x, i, vocab_size, d);
    }
    divergence = block_reduce(divergence, Sum(), shown.wide);
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = loss + double(taught) * double(temperature) * divergence;
    }
}
