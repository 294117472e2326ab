"""PyTorch on the shapes of `cargo bench --bench cuda`: products, Gram matrix, attention and a whole 8B decoder block in bf16.

python cuda_block.py    # needs a CUDA device and torch; prints a line per measurement
"""

import torch
from torch.nn import functional as F

TOKENS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, CTX = 16384, 4096, 14336, 32, 8, 128, 2048


def seconds(run):
    run()
    torch.cuda.synchronize()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(5):
            run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 5e3)
    return min(times)


def line(name, taken, tera):
    print(f"{name:<44} {taken * 1e3:9.3f} ms {tera / taken:9.1f} TFLOP/s", flush=True)


def random(*shape, scale=1.0):
    return ((torch.rand(*shape, device="cuda") - 0.5) * 2 * scale).to(torch.bfloat16)


def rotated(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Block:
    def __init__(self):
        shapes = {"q": (4096, 4096), "k": (1024, 4096), "v": (1024, 4096), "o": (4096, 4096)}
        shapes |= {"gate": (INTERMEDIATE, HIDDEN), "up": (INTERMEDIATE, HIDDEN), "down": (HIDDEN, INTERMEDIATE)}
        self.w = {name: random(*shape, scale=0.05) for name, shape in shapes.items()}
        self.norm = torch.ones(HIDDEN, device="cuda", dtype=torch.bfloat16)
        angle = torch.arange(CTX, device="cuda")[:, None] / 500000 ** (torch.arange(0, 128, 2, device="cuda") / 128)
        both = torch.cat((angle, angle), dim=-1)
        self.cos, self.sin = both.cos().to(torch.bfloat16), both.sin().to(torch.bfloat16)

    def forward(self, h):
        windows = h.shape[0] // CTX
        x = F.rms_norm(h, (HIDDEN,), self.norm, 1e-5)
        q, k, v = (F.linear(x, self.w[name]).view(windows, CTX, -1, HEAD_DIM).transpose(1, 2) for name in "qkv")
        q, k = rotated(q, self.cos, self.sin), rotated(k, self.cos, self.sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        h = h + F.linear(a.transpose(1, 2).reshape(h.shape), self.w["o"])
        x = F.rms_norm(h, (HIDDEN,), self.norm, 1e-5)
        return h + F.linear(F.silu(F.linear(x, self.w["gate"])) * F.linear(x, self.w["up"]), self.w["down"])


@torch.no_grad()
def main():
    print(torch.__version__, torch.cuda.get_device_name())
    x, w = random(8192, 8192), random(8192, 8192)
    line("product bf16 8192 cubed", seconds(lambda: F.linear(x, w)), 2e-12 * 8192**3)
    x, w = torch.rand(4096, 4096, device="cuda"), torch.rand(4096, 4096, device="cuda")
    line("product f32 4096 cubed", seconds(lambda: F.linear(x, w)), 2e-12 * 4096**3)
    for n, k in ((HIDDEN, HIDDEN), (INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)):
        x, w = random(TOKENS, k), random(n, k)
        line(f"product bf16 {TOKENS}x{n}x{k}", seconds(lambda: F.linear(x, w)), 2e-12 * TOKENS * n * k)
    for features in (HIDDEN, INTERMEDIATE):
        x = random(TOKENS, features)
        line(f"Gram bf16 {TOKENS}x{features}, half counted", seconds(lambda: x.t() @ x), 1e-12 * TOKENS * features**2)
    q = random(8, HEADS, CTX, HEAD_DIM)
    k, v = random(8, KV_HEADS, CTX, HEAD_DIM), random(8, KV_HEADS, CTX, HEAD_DIM)
    amount = 2e-12 * TOKENS * CTX * HEADS * HEAD_DIM
    attend = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    line("attention bf16, half counted", seconds(attend), amount)
    block, h = Block(), random(TOKENS, HIDDEN)
    weights = sum(w.numel() for w in block.w.values())
    line("8B block forward, 16384 tokens", seconds(lambda: block.forward(h)), 2e-12 * TOKENS * (weights + CTX * HEADS * HEAD_DIM))
    x = torch.rand(4096, 8192, device="cuda") - 0.5
    a = x @ x.t() / 8192 + 0.01 * torch.eye(4096, device="cuda")
    inverse = lambda a: torch.cholesky_inverse(torch.linalg.cholesky(a))
    line("Cholesky and inverse, 4096, f32", seconds(lambda: inverse(a)), 1e-12 * 4096**3)
    line("Cholesky and inverse, 4096, f64", seconds(lambda: inverse(a.double())), 1e-12 * 4096**3)


main()
