"""The run of `attar distill` in PyTorch: same windows in the same order, same loss, optimizer and schedule.

    python distill.py TEACHER STUDENT TEXT --tokens N [--batch 8] [--ctx 512] [--rate 3e-4] [--seed 0] [--threads 2]
                      [--held-out 0.01] [--autocast] [--log STEPS.jsonl] [--taught FOLDER]

Forward KL over the whole vocabulary at temperature 1, AdamW (0.9, 0.95, decay 0.01 on matrices), gradients clipped to 1, a
twentieth of the steps (at most 100) of warm-up, half a cosine down to a tenth. Prints what attar's --log has, a line a step, and
the held-out divergence before the first step, at every twentieth of the run and at its end; at last tokens per second on the wall
and per second of CPU time. Of a run of attar with the same settings, --log takes what its --log wrote and --taught what it wrote
with --scheme f32: how far apart the two are at each step, and in the end. Needs torch and transformers, safetensors for --taught.
"""

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

MASK = (1 << 64) - 1


def mix(x):
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def shuffled(count, key, place):
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask, at = (1 << half_bits) - 1, place
    while True:
        left, right = at >> half_bits, at & mask
        for turn in range(4):
            left, right = right, left ^ (mix(key ^ mix((right << 2) | turn)) & mask)
        at = (left << half_bits) | right
        if at < count:
            return at


def drawn(windows, seed, nth):
    epoch, place = divmod(nth, windows)
    return shuffled(windows, mix(seed ^ mix(1) ^ mix(~epoch & MASK)), place)


def rate_at(step, steps, warmup, peak, floor=0.1):
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2)


def divergence(teacher, student, rows):
    with torch.no_grad():
        log_p = F.log_softmax(teacher(rows).logits[:, :-1].float(), -1)
    log_q = F.log_softmax(student(rows).logits[:, :-1].float(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def steps_of(log):
    """The lines of attar's log that are steps, by number; of a run that was taken up again the last word counts."""
    with open(log, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return {line["step"]: line for line in lines if "gradient_norm" in line}


def apart(found, expected):
    return abs(found - expected) / abs(expected)


def distance(taught, before, student):
    """How far two students are apart: beside the length of their weights, and beside the way that was come."""
    from safetensors.torch import load_file

    taught = load_file(f"{taught}/model.safetensors")
    if stored := sorted({str(tensor.dtype) for tensor in taught.values()} - {"torch.float32"}):
        raise SystemExit(f"{stored} weights are rounded: let attar distill write --scheme f32")
    squares = {"apart": 0.0, "length": 0.0, "way": 0.0}
    for name, weight in student.state_dict().items():
        if name not in taught:  # a tied head
            continue
        weight, other, start = weight.double(), taught[name].double(), before[name].double()
        for key, difference in [("apart", weight - other), ("length", weight), ("way", weight - start)]:
            squares[key] += difference.square().sum().item()
    gap, length, way = (math.sqrt(square) for square in squares.values())
    return {"weights_apart": gap / length, "weights_apart_of_way": gap / way}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("text")
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--held-out", type=float, default=0.01)
    parser.add_argument("--autocast", action="store_true", help="products in bf16")
    parser.add_argument("--log", help="what attar distill --log wrote of the same run")
    parser.add_argument("--taught", help="the folder attar distill wrote of the same run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    tokenizer = AutoTokenizer.from_pretrained(args.student)
    with open(args.text, encoding="utf-8", newline="") as file:
        ids = tokenizer(file.read(), add_special_tokens=False)["input_ids"]
    bos = tokenizer("a")["input_ids"][:1] if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else []
    step_by = args.ctx - len(bos)
    rows = torch.tensor([bos + ids[i : i + step_by] for i in range(0, len(ids) - step_by + 1, step_by)])
    held_out = max(1, round(len(rows) * args.held_out))
    learned, scored = len(rows) - held_out, rows[len(rows) - held_out :]
    if held_out > 64:
        scored = scored[[i * held_out // 64 for i in range(64)]]

    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    teacher, student = load(args.teacher).eval().requires_grad_(False), load(args.student)
    matrices = [p for p in student.parameters() if p.ndim > 1]
    vectors = [p for p in student.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95), fused=True)
    steps = -(-args.tokens // (args.batch * args.ctx))
    warmup, every = min(steps // 20, 100), -(-steps // 20)

    def measure(step):
        with torch.no_grad():
            figures = [divergence(teacher, student, part).item() * len(part) for part in scored.split(8)]
        print(json.dumps({"step": step, "held_out_loss": sum(figures) / len(scored)}), flush=True)

    theirs = steps_of(args.log) if args.log else {}
    before = {name: weight.clone() for name, weight in student.state_dict().items()} if args.taught else {}
    largest = {"loss": 0.0, "gradient_norm": 0.0}
    measure(0)
    wall, cpu, nth = 0.0, 0.0, 0
    for step in range(1, steps + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        which = [drawn(learned, args.seed, nth + i) for i in range(args.batch)]
        nth += args.batch
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, warmup, args.rate)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.autocast):
            loss = divergence(teacher, student, rows[which])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        wall, cpu = wall + time.perf_counter() - start, cpu + time.process_time() - start_cpu
        line = {"step": step, "loss": loss.item(), "gradient_norm": norm.item()}
        if step in theirs:
            for key in largest:
                line[f"{key}_apart"] = apart(theirs[step][key], line[key])
                largest[key] = max(largest[key], line[f"{key}_apart"])
        print(json.dumps(line), flush=True)
        if step % every == 0 or step == steps:
            measure(step)
    tokens = steps * args.batch * args.ctx
    print(json.dumps({"tokens_per_second": tokens / wall, "tokens_per_cpu_second": tokens / cpu}))
    if theirs:
        print(json.dumps({"largest_apart": largest}))
    if args.taught:
        print(json.dumps(distance(args.taught, before, student)))


main()
