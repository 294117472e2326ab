#!/usr/bin/env bash
# llama.cpp scores GGUF files of attar's: on float files with the same digits, on quantized ones as closely as llama.cpp's
# rounding of activations allows. Every file type is made and scored; where a file of that name lies in WORK_DIR, that one is.
#   check_llamacpp.sh ATTAR_BINARY PEER_SCRIPTS LLAMACPP_DIR WORK_DIR
set -euo pipefail
attar=$1 scripts=$2 dir=$3 work=$4
root=$(cd "$(dirname "$0")/../.." && pwd)
. "$root/tests/interop/late_exit.sh"
model=$root/fixtures/books-2m
text=$root/fixtures/heldout.txt
chunks=6

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

quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }; }

# SCHEME FILE: llama.cpp's figures of the file beside ours.
score() {
  cp "$2" "$work/candidate.gguf"
  local theirs
  theirs=$("$scripts/kld.sh" "$work/f32.gguf" "$work/candidate.gguf" "$text" 512 "$chunks" 2>"$work/log") || true
  [[ $theirs == *'"same_top":'[0-9]* ]] || { cat "$work/log"; echo "llama-perplexity gave no figures for $1"; exit 1; }
  quietly "$attar" eval "$work/candidate.gguf" --reference "$model" --text "$text" --ctx 512 --chunks "$chunks" --quiet \
    --json "$work/ours.json"
  python3 "$root/tests/interop/compare_scores.py" "$1" "$work/ours.json" "$theirs"
}

quietly "$attar" quantize "$model" -o "$work/f32.gguf" --scheme f32 --no-eval --quiet --force
quietly "$attar" imatrix "$model" --text "$root/fixtures/calibration.txt" --chunks 16 -o "$work/scored.imatrix.gguf" --quiet --force

# All that this llama.cpp reads: its processor code has a product for each of them. MXFP4_MOE gives matrices of no expert q8_0.
for scheme in f32 bf16 f16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl iq4_xs nvfp4 mxfp4_moe q3_k_l q3_k_m \
  q3_k_s iq3_m iq3_s iq3_xs iq3_xxs q2_k q2_k_s iq2_m iq2_s iq2_xs iq2_xxs iq1_m iq1_s q2_0 tq2_0 tq1_0 q1_0; do
  if [[ ! -e $work/$scheme.gguf ]]; then
    by=(--method rtn)
    [[ $scheme == *f16 ]] || by+=(--imatrix "$work/scored.imatrix.gguf")
    quietly "$attar" quantize "$model" -o "$work/$scheme.gguf" --scheme "$scheme" "${by[@]}" --no-eval --quiet
  fi
  score "$scheme" "$work/$scheme.gguf"
done

# Every matrix in FP4 of 32.
quietly "$attar" quantize "$model" -o "$work/mxfp4-pure.gguf" --scheme mxfp4_moe --pure --method rtn --no-eval --quiet --force
score mxfp4 "$work/mxfp4-pure.gguf"

# In parts, as attar and as llama-gguf-split cut it: llama.cpp loads ours, attar theirs, and each part is the same file.
mkdir -p "$work/parts" "$work/their-parts"
quietly "$attar" convert "$work/q4_k_m.gguf" -o "$work/parts/m.gguf" --split-max-size 500KB --quiet --force
if [[ -x $dir/build/bin/llama-gguf-split ]]; then
  quietly env -u LD_PRELOAD "$dir/build/bin/llama-gguf-split" --split --split-max-size 1M "$work/q4_k_m.gguf" "$work/their-parts/m"
  quietly "$attar" convert "$work/q4_k_m.gguf" -o "$work/parts/as-they.gguf" --split-max-size 1MB --quiet --force
  for theirs in "$work"/their-parts/m-*.gguf; do
    cmp "$theirs" "$work/parts/as-they${theirs#"$work/their-parts/m"}"
  done
  quietly "$attar" convert "$theirs" -o "$work/whole.gguf" --quiet --force
  cmp "$work/q4_k_m.gguf" "$work/whole.gguf"
  echo "parts: the bytes of llama-gguf-split's, and put together again the file they were cut from"
fi
loaded=$("$dir/build/bin/llama-perplexity" -m "$(ls "$work"/parts/m-00001-of-*.gguf)" -f "$text" --chunks 1 -c 512 -fa off -ctk f32 -ctv f32 2>&1) || true
whole=$("$dir/build/bin/llama-perplexity" -m "$work/q4_k_m.gguf" -f "$text" --chunks 1 -c 512 -fa off -ctk f32 -ctv f32 2>&1) || true
figure() { grep -o 'Final estimate: PPL = [0-9.]*' <<<"$1"; }
[[ $(figure "$loaded") == "$(figure "$whole")" ]] || { echo "llama.cpp scores the parts otherwise than the file"; exit 1; }
echo "parts: $(figure "$loaded"), as of one file"

# llama-quantize's COPY is attar convert: every tensor as it is.
if [[ -x $dir/build/bin/llama-quantize ]]; then
  quietly env -u LD_PRELOAD "$dir/build/bin/llama-quantize" "$work/q4_k_m.gguf" "$work/copy.gguf" COPY
  quietly "$attar" convert "$work/q4_k_m.gguf" -o "$work/our-copy.gguf" --quiet --force
  "${PYTHON:-python3}" "$root/tests/interop/check_copy.py" "$work/our-copy.gguf" "$work/copy.gguf" 
fi
