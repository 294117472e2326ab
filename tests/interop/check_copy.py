"""Two GGUF files hold the same tensors, byte for byte.

check_copy.py A.gguf B.gguf
"""
import sys

from gguf import GGUFReader

a, b = ({t.name: (t.tensor_type, t.shape.tolist(), t.data.tobytes()) for t in GGUFReader(path).tensors} for path in sys.argv[1:])
if a != b:
    sys.exit(f"they differ in {sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))}")
print(f"copies: {len(a)} tensors, byte for byte")
