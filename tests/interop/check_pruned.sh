#!/usr/bin/env bash
# Pruned models, and one that was taught again: transformers loads the folder and scores the perplexity we report; llama.cpp
# scores the GGUF as we do.
#   check_pruned.sh ATTAR_BINARY PYTHON LLAMACPP_FOLDER MODEL CALIB TEXT
# LLAMACPP_FOLDER has bin/llama-perplexity; what is not there is skipped visibly.
set -euo pipefail
attar=$(realpath "$1") python=$2 llamacpp=$3 model=$4 calib=$5 text=$6
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. "$here/late_exit.sh"

# The perplexity llama.cpp gives FILE.
llama_perplexity() {
  LD_LIBRARY_PATH=$llamacpp/lib:$llamacpp/bin "$llamacpp/bin/llama-perplexity" -m "$1" -f "$text" -c 512 \
    -ctk f32 -ctv f32 -fa off -t 2 >"$work/log" 2>&1
  sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p' "$work/log" | grep . || { tail -5 "$work/log" >&2; return 1; }
}

# FOLDER, and FOLDER.json with what attar says it scores.
check() {
  "$python" "$here/check_folder.py" "$1" "$1.json" "$text" 2>"$work/log" || { cat "$work/log"; exit 1; }
  if [[ ! -x $llamacpp/bin/llama-perplexity ]]; then
    echo "skipped: llama.cpp is not there"
    return
  fi
  "$attar" quantize "$1" -o "$1.gguf" --scheme f32 --no-eval --quiet >/dev/null
  "$attar" eval "$1.gguf" --text "$text" --ctx 512 --quiet --json "$1-gguf.json" >/dev/null
  theirs=$(llama_perplexity "$1.gguf")
  "$python" - "$1-gguf.json" "$theirs" <<'PY'
import json, sys
ours, theirs = json.load(open(sys.argv[1]))["evaluation"]["perplexity"]["value"], float(sys.argv[2])
print(f"  llama.cpp {theirs:.4f}, attar {ours:.4f}")
if abs(theirs / ours - 1) > 1e-4:
    sys.exit("the figures differ by more than 0.01 %")
PY
}

shapes=("--ffn 0.5 --heads 4" "--layers 1 --kv-heads 2" "--drop 0 --ffn 200" "--hidden 192 --ffn 0.75" "--sparsity 2:4")
for i in "${!shapes[@]}"; do
  read -ra shape <<<"${shapes[$i]}"
  folder=$work/pruned-$i
  "$attar" prune "$model" -o "$folder" "${shape[@]}" --calib "$calib" --text "$text" --ctx 512 --convention hf --quiet \
    --json "$folder.json" >/dev/null
  echo "${shape[*]}"
  check "$folder"
done

echo "--ffn 0.5 --heads 4, taught by the original"
"$attar" distill --teacher "$model" --student "$work/pruned-0" -o "$work/taught" --data "$calib" --ctx 128 --batch 4 \
  --tokens 8192 --no-eval --quiet >/dev/null
"$attar" eval "$work/taught" --text "$text" --ctx 512 --convention hf --quiet --json "$work/taught.json" >/dev/null
check "$work/taught"
