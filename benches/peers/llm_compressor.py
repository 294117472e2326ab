"""llm-compressor's oneshot GPTQ (W4A16, groups of 128, the head left alone): prints seconds, CPU seconds and peak memory.

    python benches/peers/llm_compressor.py MODEL TEXT TOKENS CTX OUT

Calibrates on the first TOKENS tokens of TEXT in rows of CTX, on two threads. Needs llmcompressor from PyPI.
"""

import resource
import sys
import time

START = time.time()

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

TOKENS_ARE_SHORTER_THAN = 8  # characters, on average


def main() -> None:
    folder, text, tokens, ctx, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
    print(f"import {time.time() - START:.1f} s", flush=True)
    torch.set_num_threads(2)
    with open(text, encoding="utf-8") as file:
        beginning = file.read(tokens * TOKENS_ARE_SHORTER_THAN)
    ids = AutoTokenizer.from_pretrained(folder)(beginning, add_special_tokens=False)["input_ids"][:tokens]
    rows = [ids[start : start + ctx] for start in range(0, tokens, ctx)]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * ctx for _ in rows]})
    begin = time.time()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=ctx, num_calibration_samples=len(rows))
    print(f"oneshot {time.time() - begin:.1f} s", flush=True)
    model.save_pretrained(out, save_compressed=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"all {time.time() - START:.1f} s, {used.ru_utime + used.ru_stime:.1f} CPU s, "
        f"peak {used.ru_maxrss / 1024:.0f} MiB"
    )


main()
