"""The windows `attar quantize` calibrates on, as JSON: rows of ids, each beginning with BOS where the tokenizer adds one.

    python windows.py MODEL TEXT TOKENS CTX OUT

The first TOKENS tokens of TEXT, BOS counted, in whole windows of CTX. Needs `tokenizers`.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer


def main(model: str, text: str, tokens: str, ctx: str, out: str) -> None:
    tokenizer = Tokenizer.from_file(str(Path(model, "tokenizer.json")))
    bos = tokenizer.encode("").ids  # what the tokenizer puts before every text
    ids = tokenizer.encode(Path(text).read_text(encoding="utf-8"), add_special_tokens=False).ids
    step = int(ctx) - len(bos)
    rows = [bos + ids[at : at + step] for at in range(0, len(ids) - step + 1, step)][: int(tokens) // int(ctx)]
    if len(rows) != int(tokens) // int(ctx):
        sys.exit(f"{text} gives {len(rows)} windows of {ctx}, not {int(tokens) // int(ctx)}")
    Path(out).write_text(json.dumps(rows))
    print(f"{len(rows)} windows of {ctx} tokens, each beginning with {bos}")


main(*sys.argv[1:])
