"""llama-quantize and attar give every tensor of a model the same type, for every file type both have.

check_types.py ATTAR LLAMA_QUANTIZE MODEL.gguf IMATRIX FOLDER [SCHEME...]

Plans are compared for every file type, with an importance matrix and, where llama-quantize wants none, without. For the schemes
named both write the file into FOLDER, and types, sizes and the share of equal blocks of each type are those of the files.
"""
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader

attar, llama_quantize, model, imatrix = sys.argv[1:5]
folder, written = Path(sys.argv[5]), sys.argv[6:]
# llama-quantize has no file type for it, only --tensor-type: check_llamacpp.sh has its bytes read.
NOT_THEIRS = {"nvfp4"}
FLOATS = ("f32", "f16", "bf16")
OUTSIDE = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
INSIDE = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps", "block_sparse_moe.experts.*.w3": "ffn_up_exps",
}


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def gguf_name(name):
    stem = name.removesuffix(".weight")
    if stem in OUTSIDE:
        return OUTSIDE[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{INSIDE[part]}.weight"


def ours(scheme, data):
    words = ["--imatrix", imatrix] if data else []
    code, text = run(
        attar, "quantize", model, "-o", str(folder / "none.gguf"), "--scheme", scheme, "--method", "rtn", "--no-eval", "--dry-run", *words
    )
    if code:
        return text.strip().splitlines()[0]
    rows = re.findall(r"^(\S+\.weight) +[\dx ]*\d +(\w+) ", text, re.M)
    return {gguf_name(name): kind for name, kind in rows}


def theirs(scheme, data):
    words = ["--imatrix", imatrix] if data else []
    code, text = run(llama_quantize, "--dry-run", *words, model, scheme)
    if code:
        return next((line.strip() for line in text.splitlines() if "tensor type fallback" in line or "rror" in line), "failed")
    if "will require an imatrix" in text:
        return "no use without an importance matrix"
    types = {}
    for name, kind, rest in re.findall(r"\] +(\S+) +- \[[^\]]*\], type = +(\w+),(.*)$", text, re.M):
        made = re.search(r"MiB \((\w+)\)$", rest)
        types[name] = made[1].lower() if made else kind.lower()
    return types


def plans(schemes):
    compared, refused, faults = 0, [], []
    for scheme, data in ((scheme, data) for scheme in schemes for data in (True, False)):
        if data and scheme in FLOATS:
            continue  # attar refuses a matrix that could choose nothing
        mine, other = ours(scheme, data), theirs(scheme, data)
        case = f"{scheme} {'with' if data else 'without'} importance matrix"
        if isinstance(other, str):
            refused.append(case)  # no type to fall back to, or no use without a matrix
        elif isinstance(mine, str):
            faults.append(f"{case}: attar refuses what llama-quantize does: {mine}")
        else:
            differing = {name: f"attar {mine.get(name)}, llama-quantize {kind}" for name, kind in other.items() if mine.get(name) != kind}
            if differing or not other:
                faults.append(f"{case}: {differing}")
            compared += len(other)
    print(f"{Path(model).name}: {compared} tensors planned alike; llama-quantize refuses: {', '.join(refused)}", flush=True)
    if faults:
        sys.exit("\n".join(faults))


def files(scheme):
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    words = ["--scheme", scheme, "--method", "rtn", "--imatrix", imatrix, "--no-eval", "--force", "--quiet"]
    for command in ([attar, "quantize", model, "-o", str(ours), *words],
                    [llama_quantize, "--imatrix", imatrix, model, str(theirs), scheme, "2"]):
        code, text = run(*command)
        if code:
            sys.exit(f"{command}:\n{text}")
    other = {tensor.name: tensor for tensor in GGUFReader(theirs).tensors}
    blocks, equal = defaultdict(int), defaultdict(int)
    for tensor in GGUFReader(ours).tensors:
        twin = other.pop(tensor.name)
        if (tensor.tensor_type, tensor.n_bytes) != (twin.tensor_type, twin.n_bytes):
            sys.exit(f"{scheme}: {tensor.name} is {tensor.tensor_type.name} of {tensor.n_bytes} bytes, llama-quantize's "
                     f"{twin.tensor_type.name} of {twin.n_bytes}")
        size, name = GGML_QUANT_SIZES[tensor.tensor_type][1], tensor.tensor_type.name.lower()
        mine, their = (np.array(t.data).view(np.uint8).reshape(-1, size) for t in (tensor, twin))
        blocks[name] += len(mine)
        equal[name] += int((mine == their).all(1).sum())
    if other:
        sys.exit(f"{scheme}: attar's file lacks {sorted(other)}")
    coded = [name for name in blocks if name not in FLOATS]
    shares = ", ".join(f"{name} {equal[name] / blocks[name]:.4%} of {blocks[name]}" for name in coded)
    print(f"{scheme}: equal blocks: {shares or 'floats only'}", flush=True)
    return {name: (equal[name], blocks[name]) for name in blocks}


def main():
    schemes = """f32 bf16 f16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl iq4_xs nvfp4 mxfp4_moe q3_k_l q3_k_m
        q3_k_s iq3_m iq3_s iq3_xs iq3_xxs q2_k q2_k_s iq2_m iq2_s iq2_xs iq2_xxs iq1_m iq1_s q2_0 tq2_0 tq1_0 q1_0""".split()
    plans([scheme for scheme in schemes if scheme not in NOT_THEIRS])
    too_few = {}
    for scheme in written:
        for name, (equal, blocks) in files(scheme).items():
            if name in EXACT and equal < 0.999 * blocks:
                too_few[f"{name} in {scheme}"] = f"{equal} of {blocks}"
    if too_few:
        sys.exit(f"too few blocks are llama-quantize's: {too_few}")


# Types whose search is llama.cpp's, sum for sum.
EXACT = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"}
main()
