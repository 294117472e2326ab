#!/usr/bin/env bash
# Pruned models: transformers loads the folder and scores the perplexity we report; llama.cpp scores the GGUF as we do.
#   check_pruned.sh ATTAR_BINARY PYTHON LLAMACPP_FOLDER MODEL CALIB TEXT
# LLAMACPP_FOLDER has bin/llama-perplexity; what is not there is skipped visibly.
set -euo pipefail
attar=$(realpath "$1") python=$2 llamacpp=$3 model=$4 calib=$5 text=$6
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

shapes=("--ffn 0.5 --heads 4" "--layers 1 --kv-heads 2" "--drop 0 --ffn 200" "--hidden 192 --ffn 0.75")
for i in "${!shapes[@]}"; do
  read -ra shape <<<"${shapes[$i]}"
  folder=$work/pruned-$i
  "$attar" prune "$model" -o "$folder" "${shape[@]}" --calib "$calib" --text "$text" --ctx 512 --convention hf --quiet \
    --json "$folder.json" >/dev/null
  echo "${shape[*]}"
  "$python" "$here/check_folder.py" "$folder" "$folder.json" "$text" 2>"$work/log" || { cat "$work/log"; exit 1; }
  if [[ ! -x $llamacpp/bin/llama-perplexity ]]; then
    echo "skipped: llama.cpp is not there"
    continue
  fi
  "$attar" prune "$model" -o "$folder.gguf" "${shape[@]}" --calib "$calib" --ctx 512 --no-eval --quiet >/dev/null
  "$attar" quantize "$folder.gguf" -o "$folder-f32.gguf" --scheme f32 --no-eval --quiet >/dev/null
  "$attar" eval "$folder-f32.gguf" --text "$text" --ctx 512 --quiet --json "$folder-gguf.json" >/dev/null
  LD_LIBRARY_PATH=$llamacpp/lib:$llamacpp/bin "$llamacpp/bin/llama-perplexity" -m "$folder-f32.gguf" -f "$text" -c 512 \
    -ctk f32 -ctv f32 -fa off -t 2 >"$work/theirs" 2>&1 || { tail -5 "$work/theirs"; exit 1; }
  "$python" - "$folder-gguf.json" "$work/theirs" <<'PY'
import json, re, sys
ours = json.load(open(sys.argv[1]))["evaluation"]["perplexity"]["value"]
theirs = float(re.search(r"Final estimate: PPL = ([\d.]+)", open(sys.argv[2]).read()).group(1))
print(f"  llama.cpp {theirs:.4f}, attar {ours:.4f}")
if abs(theirs / ours - 1) > 1e-4:
    sys.exit("the figures differ by more than 0.01 %")
PY
done
