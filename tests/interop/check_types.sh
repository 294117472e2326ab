#!/usr/bin/env bash
# For every file type attar and llama-quantize give every tensor the same type and size, and by one importance matrix the same blocks:
# in rows of 64 and 172 (where types fall back), with four and two queries to a key, and with 8 experts.
#   check_types.sh ATTAR_BINARY PYTHON LLAMACPP_DIR SHARED_DIR WORK_DIR
# SHARED_DIR has models/ and tools/random_model.py; what is not there is skipped visibly.
set -euo pipefail
attar=$1 python=$2 bin=$3/bin shared=$4 work=$5/types
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
[[ -x $bin/llama-quantize ]] || { echo "skipped: llama-quantize is not there"; exit 0; }
mkdir -p "$work"
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }; }

# NAME FOLDER SCHEME...: plans of every file type, files of the schemes named.
check() {
  local name=$1 folder=$2
  shift 2
  if [[ ! -e $folder/config.json ]]; then
    echo "skipped: $name is not there"
    return
  fi
  quietly "$attar" quantize "$folder" -o "$work/$name.gguf" --scheme f32 --no-eval --quiet --force
  quietly "$attar" imatrix "$work/$name.gguf" --text "$root/fixtures/heldout.txt" --ctx 128 --chunks 4 -o "$work/$name.imatrix.gguf" \
    --quiet --force
  LD_LIBRARY_PATH=$bin "$python" "$here/check_types.py" "$attar" "$bin/llama-quantize" "$work/$name.gguf" \
    "$work/$name.imatrix.gguf" "$work" "$@"
}

exact=(q8_0 q4_0 q4_1 q5_0 q5_1 q4_k_s q5_k_s q6_k iq4_xs iq4_nl q2_k q3_k_s)
# Without q2_0, which the gguf package does not read.
rest=(q5_k_m q4_k_m mxfp4_moe q3_k_l q3_k_m iq3_m iq3_s iq3_xs iq3_xxs q2_k_s iq2_m iq2_s iq2_xs iq2_xxs iq1_m iq1_s tq2_0 tq1_0)
check stories260K "$shared/models/stories260K" "${exact[@]}" "${rest[@]}"
check books-7m "$shared/models/books-7m" "${exact[@]}"
if [[ -e $shared/tools/random_model.py ]]; then
  quietly "$python" "$shared/tools/random_model.py" "$work/grouped" --hidden 256 --layers 16 --heads 8 --kv-heads 2 --ffn 256 \
    --vocab 4096 --tokenizer "$root/fixtures/books-2m"
fi
check grouped "$work/grouped"
quietly "$python" "$here/make_experts.py" mixtral "$root/fixtures/books-2m" "$work/experts-2"
check experts-2 "$work/experts-2" q4_k_m mxfp4_moe iq3_m
if [[ -e $shared/models/books-7m ]]; then
  quietly "$python" "$here/make_experts.py" mixtral "$shared/models/books-7m" "$work/experts-8"
fi
check experts-8 "$work/experts-8"
