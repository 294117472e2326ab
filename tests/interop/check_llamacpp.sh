#!/usr/bin/env bash
# llama.cpp scores GGUF files of attar's: on float files with the same digits, on quantized ones as closely as llama.cpp's
# rounding of activations allows.
#   check_llamacpp.sh ATTAR_BINARY PEER_SCRIPTS LLAMACPP_DIR WORK_DIR
set -euo pipefail
attar=$1 scripts=$2 dir=$3 work=$4
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/tests/interop/late_exit.sh"
model=$root/fixtures/books-2m
text=$root/fixtures/heldout.txt

if [[ ! -x $dir/build/bin/llama-perplexity ]]; then
  # The build script's first pip call needs the package's build backend at hand.
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install --quiet --upgrade pip cmake ninja numpy scikit-build-core pathspec flit-core
fi
if ! PEERS_DIR=$dir "$scripts/llamacpp.sh" "$dir" >/dev/null; then
  echo "skipped: llama.cpp could not be built"
  exit 0
fi
export PEERS_DIR=$dir

"$attar" quantize "$model" -o "$work/f32.gguf" --scheme f32 --no-eval --quiet --force >/dev/null
for scheme in f32 q8_0 q6_k q5_k_m q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0; do
  cp "$work/$scheme.gguf" "$work/candidate.gguf"
  theirs=$("$scripts/kld.sh" "$work/f32.gguf" "$work/candidate.gguf" "$text" 512 2>"$work/log") || true
  [[ $theirs == *'"same_top":'[0-9]* ]] || { cat "$work/log"; echo "llama-perplexity gave no figures for $scheme"; exit 1; }
  "$attar" eval "$work/candidate.gguf" --reference "$model" --text "$text" --ctx 512 --quiet --json "$work/ours.json" >/dev/null
  python3 "$root/tests/interop/compare_scores.py" "$scheme" "$work/ours.json" "$theirs"
done
