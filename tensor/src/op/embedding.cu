// Rows of a table by token, and their gradient. Legend: table `[vocab_size, features]`, out `[tokens, features]`.

// A block for each token; `scale` is 1 where a model has no other.
KERNEL embedding(ELEMENT* out, const ELEMENT* table, const u32* tokens, int features, float scale) {
    const ELEMENT* from = table + i64(tokens[blockIdx.x]) * features;
    ELEMENT* to = out + i64(blockIdx.x) * features;
    for (int i = threadIdx.x; i < features; i += blockDim.x) {
        store(to + i, scale * to_float(from[i]));
    }
}

// Adds to each table row the gradients of the places where its token stands, in their order. Block b serves the token
// `tokens[b]`, which stands at `places[starts[b] .. starts[b + 1]]`.
KERNEL embedding_backward(float* d_table, const ELEMENT* d_out, const u32* tokens, const u32* starts, const u32* places,
                          int features, float scale) {
    float* to = d_table + i64(tokens[blockIdx.x]) * features;
    for (int i = threadIdx.x; i < features; i += blockDim.x) {
        float sum = 0.0f;
        for (u32 at = starts[blockIdx.x]; at < starts[blockIdx.x + 1]; at++) {
            sum += to_float(d_out[i64(places[at]) * features + i]);
        }
        to[i] += scale * sum;
    }
}
