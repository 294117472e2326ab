"""One family's folder, its GGUF and the folder made from that, as transformers, llama.cpp and attar score them.

check_family.py FAMILY FOLDER BACK TEXT CTX FOLDER.json GGUF.json BACK.json LLAMACPP_PERPLEXITY

The reports are attar's, by llama.cpp's convention. transformers scores the same tokens of the folder; of the folder that
came back it must make the same logits, bit for bit. llama.cpp computes GELU from a table of 16-bit floats, so that families
with that activation agree to fewer digits.
"""
import json
import math
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

family, folder, back, text, ctx, folder_json, gguf_json, back_json, llamacpp = sys.argv[1:]
ctx, llamacpp = int(ctx), float(llamacpp)
evaluations = [json.load(open(path))["evaluation"] for path in (folder_json, gguf_json, back_json)]
ours = [evaluation["perplexity"]["value"] for evaluation in evaluations]
first = ctx // 2
chunks = evaluations[0]["tokens"] // (ctx - 1 - first)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


tokenizer = AutoTokenizer.from_pretrained(folder)
bos = tokenizer.bos_token_id
adds_bos = tokenizer("x")["input_ids"][0] == bos
ids = tokenizer(open(text, encoding="utf-8").read())["input_ids"]
model, returned = load(folder), load(back)
total, count = 0.0, 0
with torch.no_grad():
    for start in range(0, chunks * ctx, ctx):
        window = torch.tensor([ids[start : start + ctx]])
        if adds_bos:
            window[0, 0] = bos
        logits = model(window).logits
        if start == 0 and not torch.equal(logits, returned(window).logits):
            sys.exit(f"{family}: the folder that came back from GGUF makes other logits")
        scores = logits[0, first:-1].log_softmax(-1).gather(1, window[0, first + 1 :, None])
        total -= scores.double().sum().item()
        count += scores.shape[0]
theirs = math.exp(total / count)

with safe_open(f"{folder}/model.safetensors", "pt") as a, safe_open(f"{back}/model.safetensors", "pt") as b:
    if sorted(a.keys()) != sorted(b.keys()):
        sys.exit(f"{family}: tensors differ: {sorted(set(a.keys()) ^ set(b.keys()))}")
    for name in a.keys():
        # In GGUF files one is added to Gemma's norms: of weights below 2^-16 that keeps half of 2^-23, and the sum.
        allowed = 2**-24 if "norm" in name and family.startswith("gemma") else 0
        if (a.get_tensor(name).float() - b.get_tensor(name).float()).abs().max() > allowed:
            sys.exit(f"{family}: {name} came back changed")

print(
    f"{family}: perplexity attar {ours[0]:.4f} (GGUF {ours[1]:.4f}, back {ours[2]:.4f}), transformers {theirs:.4f} "
    f"({abs(ours[0] / theirs - 1):.1e}), llama.cpp {llamacpp:.4f} ({abs(ours[0] / llamacpp - 1):.1e})"
)
if not ours[0] == ours[1] == ours[2]:
    sys.exit("folder, GGUF and the folder that came back score differently")
if abs(ours[0] / theirs - 1) > 1e-6:
    sys.exit("transformers scores the folder differently")
table = model.config.get_text_config().to_dict().get("hidden_activation", "") == "gelu_pytorch_tanh"
if abs(ours[0] / llamacpp - 1) > (1e-4 if table else 1e-6):
    sys.exit("llama.cpp scores the GGUF differently")
