"""Compares the figures that check_logits.sh took: check_logits.py WORK_DIR"""
import json
import re
import struct
import sys

work = sys.argv[1]


def theirs(name):
    log = open(f"{work}/{name}.log", errors="replace").read()
    mean = re.search(r"Mean\s+KLD:\s+(-?[\d.]+)\s*±\s*([\d.]+)", log)
    base = re.search(r"Mean PPL\(base\)\s*:\s*([\d.]+)", log)
    if not mean or not base:
        sys.exit(f"llama-perplexity gave no figures for {name}:\n{log[-2000:]}")
    return float(mean[1]), float(base[1])


def ours(name):
    evaluation = json.load(open(f"{work}/{name}.json"))["evaluation"]
    reference = evaluation.get("reference_perplexity", {}).get("value")
    return evaluation["kl_divergence"]["mean"], reference, evaluation["reference"].get("unknown_targets", 0) if "reference" in evaluation else 0


exact_kl, exact_base, _ = ours("exact")
heads = []
for base in ["ours", "theirs"]:
    bytes_ = open(f"{work}/{base}.base", "rb").read()
    heads.append((len(bytes_), bytes_[:8], struct.unpack("<3i", bytes_[8:20])))
    kl, reference, unknown = ours(base)
    of_itself, _ = theirs(f"{base}-f32")
    of_quantized, their_base = theirs(f"{base}-d")
    print(
        f"file of {base}: attar KL {kl:.6f} perplexity of the reference {reference} ({unknown} unknown); "
        f"llama-perplexity KL {of_quantized:.6f}, of the model from itself {of_itself:.6f}, PPL(base) {their_base:.4f}"
    )
    # llama-perplexity prints six digits; its own rounding of probabilities is good for about 1e-5.
    if abs(kl - exact_kl) > 2e-6:
        sys.exit(f"attar finds a KL divergence of {kl:.8f} in the file, and {exact_kl:.8f} without it")
    if abs(of_itself) > 2e-5:
        sys.exit("llama-perplexity finds a model to diverge from itself")
    if abs(of_quantized - kl) > 2e-5:
        sys.exit(f"llama-perplexity finds a KL divergence of {of_quantized}, attar one of {kl:.6f}")
    if base == "ours" and abs(their_base / exact_base - 1) > 1e-4:
        sys.exit(f"llama-perplexity reads a perplexity of {their_base} in attar's file, which is {exact_base}")
    if base == "ours" and (reference is None or abs(reference / exact_base - 1) > 1e-4):
        sys.exit("attar does not read its own file's perplexity")
if heads[0] != heads[1]:
    sys.exit(f"the two files differ in size or header: {heads}")
