"""Two importance matrices, or two files quantized by one, side by side.

check_imatrix.py matrices A B RELATIVE
check_imatrix.py blocks SCHEME A B
"""

import sys

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader


def matrices(a, b, most):
    a, b = ({t.name: np.array(t.data, np.float32).ravel() for t in GGUFReader(path).tensors} for path in (a, b))
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    worst = 0.0
    for name, ours in a.items():
        if name.endswith(".counts"):
            assert (ours == b[name]).all(), (name, ours, b[name])
        else:
            worst = max(worst, float((np.abs(ours - b[name]) / np.maximum(np.abs(b[name]), 1e-12)).max()))
    assert worst <= float(most), f"sums differ by {worst:.2e}"
    print(f"{len(a) // 2} entries, sums differ by {worst:.1e} at most")


def blocks(scheme, a, b):
    a, b = (GGUFReader(path) for path in (a, b))
    for key in ("file", "dataset", "entries_count", "chunks_count"):
        ours, theirs = (file.fields[f"quantize.imatrix.{key}"].contents() for file in (a, b))
        assert ours == theirs, (key, ours, theirs)
    theirs = {tensor.name: tensor for tensor in b.tensors}
    assert theirs.keys() == {tensor.name for tensor in a.tensors}
    count = 0
    for ours in a.tensors:
        name, other = ours.name, theirs[ours.name]
        assert ours.tensor_type == other.tensor_type, (name, ours.tensor_type, other.tensor_type)
        size = GGML_QUANT_SIZES[ours.tensor_type][1]
        ours, other = (np.array(t.data).view(np.uint8).reshape(-1, size) for t in (ours, other))
        differ = int((ours != other).any(1).sum())
        assert differ == 0, f"{scheme}: {differ} blocks of {name} differ"
        count += len(ours)
    print(f"{scheme}: {count} blocks, all the same")


{"matrices": matrices, "blocks": blocks}[sys.argv[1]](*sys.argv[2:])
