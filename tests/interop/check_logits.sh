#!/usr/bin/env bash
# llama-perplexity reads what attar keeps of a model's predictions, and attar what llama-perplexity keeps: of the same file the
# divergence is the same.
#   check_logits.sh ATTAR_BINARY LLAMACPP_DIR WORK_DIR
set -euo pipefail
attar=$1 dir=$2 work=$3
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/tests/interop/late_exit.sh"
perplexity=$dir/bin/llama-perplexity
[[ -x $perplexity ]] || { echo "skipped: llama.cpp is not there"; exit 0; }
model=$root/fixtures/books-2m text=$root/fixtures/heldout.txt
flags=(-c 512 -b 512 --no-warmup -fa off -ctk f32 -ctv f32 -t 2)

"$attar" quantize "$model" -o "$work/logits-f32.gguf" --scheme f32 --no-eval --quiet --force >/dev/null
"$attar" quantize "$model" -o "$work/logits-q.gguf" --scheme q4_0 --method rtn --no-eval --quiet --force >/dev/null
# Decoded to floats, so that llama.cpp rounds no activations.
"$attar" convert "$work/logits-q.gguf" -o "$work/logits-d" --quiet --force >/dev/null
"$attar" quantize "$work/logits-d" -o "$work/logits-d.gguf" --scheme f32 --no-eval --quiet --force >/dev/null
"$perplexity" -m "$work/logits-f32.gguf" -f "$text" --kl-divergence-base "$work/theirs.base" "${flags[@]}" >"$work/log" 2>&1
"$attar" eval "$work/logits-f32.gguf" --text "$text" --save-reference "$work/ours.base" --save-as llama.cpp --force --quiet >/dev/null

for base in ours theirs; do
  "$attar" eval "$work/logits-d.gguf" --reference "$work/$base.base" --quiet --json "$work/$base.json" >/dev/null
  for file in f32 d; do
    "$perplexity" -m "$work/logits-$file.gguf" --kl-divergence --kl-divergence-base "$work/$base.base" "${flags[@]}" >"$work/$base-$file.log" 2>&1
  done
done
"$attar" eval "$work/logits-d.gguf" --reference "$work/logits-f32.gguf" --text "$text" --quiet --json "$work/exact.json" >/dev/null
python3 "$root/tests/interop/check_logits.py" "$work"
