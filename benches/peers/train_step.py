"""PyTorch's rate at the training step that `cargo bench --bench train` measures: forward, loss, backward, AdamW.

    python train_step.py [--threads 2] [--steps 5] [--ctx 512] [--batch 8] [--module plain|transformers|both]
                         [--precision f32|bf16|both]

A student of 7 million parameters with the shape of books-7m (8 layers, hidden 256, 8 heads over 4 keys of 32 features,
ffn 768, vocabulary 4096, head tied to the embedding), random weights in f32, every next token of each window a target;
with bf16, forward and loss run under torch.autocast("cpu", dtype=torch.bfloat16).
Two ways to write it are tried, for the faster one is the peer:

transformers   LlamaForCausalLM with attn_implementation="sdpa", its own loss
plain          a module with nothing but what the model needs: F.rms_norm, scaled_dot_product_attention, cross_entropy

Prints, for each, the median step's tokens per second on the wall and per second of CPU time over all threads.
Wants torch and, for the first way, transformers. Measured with torch 2.15.0 and transformers 5.24.0.
"""

import argparse
import contextlib
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 256, 768, 8, 8, 4, 32, 4096
EPS, THETA = 1e-5, 10000.0


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn_norm = nn.Parameter(torch.ones(HIDDEN))
        self.mlp_norm = nn.Parameter(torch.ones(HIDDEN))
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.o = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.gate_up = nn.Linear(HIDDEN, 2 * FFN, bias=False)
        self.down = nn.Linear(FFN, HIDDEN, bias=False)

    def forward(self, x, cos, sin):
        batch, ctx, _ = x.shape
        qkv = self.qkv(F.rms_norm(x, (HIDDEN,), self.attn_norm, EPS))
        q, k, v = qkv.view(batch, ctx, -1, HEAD_DIM).transpose(1, 2).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(batch, ctx, -1))
        gate, up = self.gate_up(F.rms_norm(x, (HIDDEN,), self.mlp_norm, EPS)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def turned(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Plain(nn.Module):
    def __init__(self, ctx):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.Parameter(torch.ones(HIDDEN))
        frequencies = THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.arange(ctx)[:, None] * frequencies
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        nn.init.normal_(self.embedding.weight, std=0.02)

    def loss(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(F.rms_norm(x[:, :-1], (HIDDEN,), self.norm, EPS), self.embedding.weight)
        return F.cross_entropy(logits.reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))


class Transformers(nn.Module):
    def __init__(self, ctx):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=HIDDEN, intermediate_size=FFN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, vocab_size=VOCAB, max_position_embeddings=ctx,
                rms_norm_eps=EPS, tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa",
            )
        )

    def loss(self, tokens):
        return self.model(input_ids=tokens, labels=tokens).loss


def optimizers(parameters):
    for kind in ("fused", "foreach"):
        yield kind, torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.1, **{kind: True})


def computing_in(precision):
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def measure(name, kind, model, optimizer, precision, args):
    tokens = torch.randint(0, VOCAB, (args.batch, args.ctx))
    wall, cpu = [], []
    for step in range(args.steps + 2):
        start, start_cpu = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with computing_in(precision):
            loss = model.loss(tokens)
        loss.backward()
        optimizer.step()
        if step >= 2:
            wall.append(tokens.numel() / (time.perf_counter() - start))
            cpu.append(tokens.numel() / (time.process_time() - start_cpu))
    wall, cpu = statistics.median(wall), statistics.median(cpu)
    print(
        f"{name}, AdamW {kind}, {precision}, {args.batch} x {args.ctx}, {args.threads} threads: "
        f"{wall:.0f} tokens/s, {cpu:.0f} per second of CPU time",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--module", choices=["plain", "transformers", "both"], default="both")
    parser.add_argument("--precision", choices=["f32", "bf16", "both"], default="both")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    for name, make in {"plain": Plain, "transformers": Transformers}.items():
        for precision in ("f32", "bf16"):
            if args.module in (name, "both") and args.precision in (precision, "both"):
                model = make(args.ctx)
                for kind, optimizer in optimizers(list(model.parameters())):
                    measure(name, kind, model, optimizer, precision, args)


if __name__ == "__main__":
    main()
