"""The `gguf` package reads a file of attar's and dequantizes every tensor to the very bits attar reported.

check_gguf.py FILE.gguf REPORT.json
"""
import hashlib
import json
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

path, report_path = sys.argv[1:]
expected = {}  # of each tensor of the file the hash, or those of its experts by number
for t in json.load(open(report_path))["tensors"]:
    if "expert" in t:
        expected.setdefault(t["stored_name"], {})[t["expert"]] = t["decoded_sha256"]
    else:
        expected[t["stored_name"]] = t["decoded_sha256"]
reader = GGUFReader(path)
# Factors of rotary frequencies are configuration, not weights.
found = {t.name: t for t in reader.tensors if not t.name.startswith("rope_f")}
if set(found) != set(expected):
    sys.exit(f"{path}: tensors differ from the report: {sorted(set(found) ^ set(expected))}")
for name, tensor in found.items():
    values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    sha256 = lambda array: hashlib.sha256(array.tobytes()).hexdigest()
    stacked = isinstance(expected[name], dict)
    if ({i: sha256(expert) for i, expert in enumerate(values)} if stacked else sha256(values)) != expected[name]:
        sys.exit(f"{path}: {name} ({tensor.tensor_type.name}) dequantizes to other bits than attar reported")
print(f"{path.rsplit('/', 1)[-1]}: {len(found)} tensors, bit for bit")
