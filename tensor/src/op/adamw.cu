// One step of Adam with decoupled weight decay, element by element, in f32. `rate` is the learning rate over 1 - beta1^t, `root`
// is 1 / sqrt(1 - beta2^t), `kept` is 1 - learning rate * decay. `narrow` is the weight again, where products read it so.
// Loshchilov and Hutter, arXiv:1711.05101, Algorithm 2.
KERNEL adamw(float* weight, bf16* narrow, float* mean, float* mean_square, const float* gradient, i64 count,
             float gradient_scale, float rate, float root, float kept, float beta1, float beta2, float eps) {
    i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) {
        return;
    }
    float g = gradient[i] * gradient_scale;
    float m = beta1 * mean[i] + (1.0f - beta1) * g;
    float v = beta2 * mean_square[i] + (1.0f - beta2) * (g * g);
    float w = weight[i] * kept - rate * m / (sqrtf(v) * root + eps);
    mean[i] = m;
    mean_square[i] = v;
    weight[i] = w;
    if (narrow) {
        narrow[i] = to_bf16(w);
    }
}
