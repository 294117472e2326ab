// Gated activations and their gradients, element by element. `kind`: 0 silu, 1 gelu by its tanh form, which is the same curve
// with another argument of the logistic function.

// x s(y) where s(y) = 1 / (1 + e^-y); also y's slope in x.
DEVICE float argument(float x, int kind, float* slope) {
    const float twice_root = 1.59576912f; // 2 sqrt(2 / pi)
    *slope = kind == 0 ? 1.0f : twice_root * (1.0f + 3.0f * 0.044715f * (x * x));
    return kind == 0 ? x : twice_root * (x + 0.044715f * (x * x * x));
}

// out = activation(gate) * up; out may be either.
KERNEL gate(ELEMENT* out, const ELEMENT* gate, const ELEMENT* up, i64 count, int kind) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) {
        return;
    }
    float slope;
    float x = to_float(gate[i]);
    store(out + i, x / (1.0f + expf(-argument(x, kind, &slope))) * to_float(up[i]));
}

// The gradients of gate and up; either may be what it is the gradient of.
KERNEL gate_backward(ELEMENT* d_gate, ELEMENT* d_up, const ELEMENT* gate, const ELEMENT* up, const ELEMENT* d_out,
                     i64 count, int kind) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) {
        return;
    }
    float slope;
    float x = to_float(gate[i]);
    float logistic = 1.0f / (1.0f + expf(-argument(x, kind, &slope)));
    float d = to_float(d_out[i]);
    float other = to_float(up[i]);
    store(d_up + i, d * (x * logistic));
    store(d_gate + i, d * other * (logistic + x * slope * logistic * (1.0f - logistic)));
}
