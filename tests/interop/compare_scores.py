"""Compares attar's scores of a GGUF with llama.cpp's.

compare_scores.py SCHEME OURS.json THEIRS_AS_JSON

Float files must agree to llama-perplexity's four digits. For quantized ones llama.cpp also rounds the activations to 8 bits
in blocks of 32 or 256, which attar does not: that moves perplexity by a fraction of a percent and adds to the divergence.
"""
import json
import sys

scheme, ours_path, theirs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
ours = json.load(open(ours_path))["evaluation"]
perplexity, divergence = ours["perplexity"]["value"], ours["kl_divergence"]["mean"]
relative = abs(perplexity / theirs["perplexity"] - 1)
added = theirs["kld_mean"] - divergence
print(
    f"{scheme}: perplexity attar {perplexity:.4f} llama.cpp {theirs['perplexity']:.4f} ({relative:.3%}); "
    f"KL attar {divergence:.6f} llama.cpp {theirs['kld_mean']:.6f} (activation rounding adds {added:+.6f})"
)
if scheme == "f32":
    if abs(ours["reference_perplexity"]["value"] - theirs["reference_perplexity"]) > 1e-4:
        sys.exit("the float file's perplexity differs from llama-perplexity's digits")
elif relative > 0.01 or abs(added) > 0.003:
    sys.exit("the figures differ by more than activation rounding explains")
