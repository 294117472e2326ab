#!/usr/bin/env bash
# Compiles every CUDA kernel with NVIDIA's own compiler, on a machine without a GPU: the library comes from PyPI. Fails where it cannot be
# had or a kernel does not compile; nothing is skipped.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
peers=${ATTAR_PEERS:-$HOME/.cache/attar-peers}

mkdir -p "$peers"
[[ -x $peers/nvrtc/bin/python ]] || python3 -m venv "$peers/nvrtc"
"$peers/nvrtc/bin/python" -c 'import importlib.metadata as m; m.version("nvidia-cuda-nvrtc")' 2>/dev/null ||
  "$peers/nvrtc/bin/pip" install --quiet 'nvidia-cuda-nvrtc>=13'
libraries=$(find "$peers/nvrtc/lib" -name 'libnvrtc.so.*' -printf '%h\n' | sort -u | head -1)

cd "$root"
ATTAR_CUDA_LIBS=$libraries ATTAR_NVRTC_REQUIRED=1 cargo test --package attar-tensor --test nvrtc --quiet
