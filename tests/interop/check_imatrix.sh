#!/usr/bin/env bash
# Importance matrices of attar and of llama-imatrix are the same, each reads the other's in both layouts, and by one matrix attar and
# llama-quantize write the same blocks.
#   check_imatrix.sh ATTAR_BINARY PYTHON LLAMACPP_DIR WORK_DIR
set -euo pipefail
attar=$1 python=$2 bin=$3/bin work=$4
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
[[ -x $bin/llama-imatrix && -x $bin/llama-quantize ]] || { echo "skipped: llama-imatrix is not there"; exit 0; }
model=$root/fixtures/books-2m text=$root/fixtures/heldout.txt
mkdir -p "$work/imatrix"
cd "$work/imatrix"
quietly() { "$@" >log 2>&1 || { cat log; exit 1; }; }
theirs() { quietly env LD_LIBRARY_PATH="$bin" "$bin/llama-imatrix" -m f32.gguf -t 2 "$@"; }
same() { "$python" "$here/check_imatrix.py" matrices "$@"; }

quietly "$attar" quantize "$model" -o f32.gguf --scheme f32 --no-eval --quiet
quietly "$attar" imatrix "$model" --text "$text" --chunks 4 -o ours.gguf
theirs -f "$text" --chunks 4 --no-ppl -fa off -ctk f32 -ctv f32 -o theirs.gguf
same ours.gguf theirs.gguf 1e-3

theirs --in-file ours.gguf -o read.gguf
same ours.gguf read.gguf 0
theirs --in-file ours.gguf --output-format dat -o theirs.dat
quietly "$attar" imatrix --merge ours.gguf -o ours.dat
cmp ours.dat theirs.dat
theirs --in-file ours.dat --in-file theirs.gguf -o both.gguf
quietly "$attar" imatrix --merge theirs.dat theirs.gguf -o merged.gguf
same merged.gguf both.gguf 0

for scheme in q8_0 q4_0 q4_1 q5_0 q5_1 q4_k_m q6_k; do
  quietly "$attar" quantize "$model" -o a.gguf --imatrix ours.gguf --scheme "$scheme" --no-eval --force
  quietly env LD_LIBRARY_PATH="$bin" "$bin/llama-quantize" --imatrix ours.gguf f32.gguf b.gguf "$scheme" 2
  "$python" "$here/check_imatrix.py" blocks "$scheme" a.gguf b.gguf
done
