#!/usr/bin/env bash
# Random models of every family: attar's figures of a folder, of its GGUF and of the folder made from that are equal, and are
# transformers' and llama.cpp's; and quantized ones load there.
#   check_families.sh ATTAR_BINARY PYTHON LLAMACPP_DIR WORK_DIR [FAMILY]...
set -euo pipefail
attar=$1 python=$2 bin=$3/bin work=$4
shift 4
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
. "$here/late_exit.sh"
text=$root/fixtures/heldout.txt
ctx=512 chunks=4
families=("$@")
[[ ${#families[@]} -gt 0 ]] || families=(gemma2 gemma3 gemma3-pattern phi3 phi3-short phi3-long olmo2 smollm3 granite mixtral qwen3_moe)

head -c 12000 "$text" >"$work/text.txt"
head -c 60000 "$root/fixtures/calibration.txt" >"$work/calibration.txt"

perplexity() { # of a GGUF, as llama.cpp has it
  local out
  out=$("$bin/llama-perplexity" -m "$1" -f "$work/text.txt" -c $ctx --chunks $chunks -t 2 -fa off -ctk f32 -ctv f32 2>&1) || true
  grep -o "\[$chunks\][0-9.]*" <<<"$out" | cut -d']' -f2 | grep . || { tail -20 <<<"$out" >&2; return 1; }
}

score() { # MODEL JSON
  "$attar" eval "$1" --text "$work/text.txt" --ctx $ctx --chunks $chunks --convention llama.cpp --quiet --json "$2" >/dev/null
}

for family in "${families[@]}"; do
  name=${family/phi3/fused} # in a model of the name phi3 llama.cpp looks for Phi-3's own tokens
  folder=$work/$name gguf=$work/$name.gguf back=$work/$name-back
  case $family in
    mixtral | qwen3_moe) "$python" "$here/make_experts.py" "$family" "$root/fixtures/books-2m" "$folder" 2>/dev/null ;;
    *) "$python" "$here/make_family.py" "$family" "$root/fixtures/books-2m" "$folder" 2>/dev/null ;;
  esac
  "$attar" quantize "$folder" -o "$gguf" --scheme f32 --no-eval --quiet >/dev/null
  "$attar" convert "$gguf" -o "$back" --quiet >/dev/null
  score "$folder" "$work/folder.json"
  score "$gguf" "$work/gguf.json"
  score "$back" "$work/back.json"
  "$python" "$here/check_family.py" "$family" "$folder" "$back" "$work/text.txt" $ctx "$work/folder.json" "$work/gguf.json" \
    "$work/back.json" "$(perplexity "$gguf")" 2>"$work/log" || { cat "$work/log"; exit 1; }

  "$attar" quantize "$folder" -o "$folder.q4.gguf" --scheme q4_k_m --calib "$work/calibration.txt" --calib-tokens 4096 --ctx 256 \
    --text "$work/text.txt" --quiet --json "$work/q4.json" >/dev/null
  "$python" "$here/check_gguf.py" "$folder.q4.gguf" "$work/q4.json"
  perplexity "$folder.q4.gguf" >"$work/theirs"
  "$attar" quantize "$folder" -o "$folder-w8" --scheme w8a16-g128 --calib "$work/calibration.txt" --calib-tokens 4096 --ctx 256 \
    --text "$work/text.txt" --convention hf --quiet --json "$work/w8.json" >/dev/null
  "$python" "$here/check_folder.py" "$folder-w8" "$work/w8.json" "$work/text.txt" 2>"$work/log" || { cat "$work/log"; exit 1; }
done
