// Rotary position embedding: feature i of a head turns with feature i + half. Legend: x `[tokens, heads * head_dim]` of ELEMENT,
// cos and sin `[ctx, half]`; features from 2 half on stay. `back` turns the other way: the gradient. One thread for each pair.
KERNEL rope(ELEMENT* x, const float* cos, const float* sin, i64 pairs, int ctx, int heads, int head_dim, int half,
            int back) {
    i64 pair = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (pair >= pairs) {
        return;
    }
    int i = int(pair % half);
    i64 head = pair / half; // token * heads + head
    i64 angle = head / heads % ctx * half + i;
    ELEMENT* first = x + head * head_dim + i;
    float a = to_float(first[0]);
    float b = to_float(first[half]);
    float c = cos[angle];
    float s = back ? -sin[angle] : sin[angle];
    store(first, a * c - b * s);
    store(first + half, b * c + a * s);
}
