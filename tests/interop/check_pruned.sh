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

# FILE REPORT SHARE: llama.cpp scores FILE as REPORT says, but for this share.
against_llamacpp() {
  "$python" - "$2" "$(llama_perplexity "$1")" "$3" <<'PY'
import json, sys
ours, theirs, share = json.load(open(sys.argv[1]))["evaluation"]["perplexity"]["value"], float(sys.argv[2]), float(sys.argv[3])
print(f"  llama.cpp {theirs:.4f}, attar {ours:.4f}")
if abs(theirs / ours - 1) > share:
    sys.exit(f"the figures differ by more than {share:.2%}")
PY
}

# MODEL, a folder or a GGUF file: llama.cpp scores it in f32 as attar does.
check_gguf() {
  if [[ ! -x $llamacpp/bin/llama-perplexity ]]; then
    echo "skipped: llama.cpp is not there"
    return
  fi
  "$attar" quantize "$1" -o "$1-f32.gguf" --scheme f32 --no-eval --quiet >/dev/null
  "$attar" eval "$1-f32.gguf" --text "$text" --ctx 512 --quiet --json "$1-f32.json" >/dev/null
  against_llamacpp "$1-f32.gguf" "$1-f32.json" 1e-4
}

# FOLDER, and FOLDER.json with what attar says it scores.
check() {
  "$python" "$here/check_folder.py" "$1" "$1.json" "$text" 2>"$work/log" || { cat "$work/log"; exit 1; }
  check_gguf "$1"
}

shapes=("--ffn 0.5 --heads 4" "--layers 1 --kv-heads 2" "--drop 0 --ffn 200" "--hidden 192 --ffn 0.75" "--sparsity 2:4"
  "--ffn 0.5 --kv-heads 0.5 --across-layers")
for i in "${!shapes[@]}"; do
  read -ra shape <<<"${shapes[$i]}"
  folder=$work/pruned-$i
  "$attar" prune "$model" -o "$folder" "${shape[@]}" --calib "$calib" --text "$text" --ctx 512 --convention hf --quiet \
    --json "$folder.json" >/dev/null
  echo "${shape[*]}"
  check "$folder"
done

echo "--ffn 0.5 --kv-heads 0.5 --across-layers --arch deci, and its q8_0"
"$attar" prune "$model" -o "$work/deci.gguf" --ffn 0.5 --kv-heads 0.5 --across-layers --arch deci --calib "$calib" --ctx 512 \
  --no-eval --quiet >/dev/null
check_gguf "$work/deci.gguf"
if [[ -x $llamacpp/bin/llama-perplexity ]]; then
  "$attar" quantize "$work/deci.gguf" -o "$work/q8_0.gguf" --scheme q8_0 --method rtn --no-eval --quiet >/dev/null
  "$attar" eval "$work/q8_0.gguf" --text "$text" --ctx 512 --quiet --json "$work/q8_0.json" >/dev/null
  against_llamacpp "$work/q8_0.gguf" "$work/q8_0.json" 1e-2 # its activations are codes too
fi

echo "--ffn 0.5 --heads 4, taught by the original"
"$attar" distill --teacher "$model" --student "$work/pruned-0" -o "$work/taught" --data "$calib" --ctx 128 --batch 4 \
  --tokens 8192 --no-eval --quiet >/dev/null
"$attar" eval "$work/taught" --text "$text" --ctx 512 --convention hf --quiet --json "$work/taught.json" >/dev/null
check "$work/taught"
