#!/usr/bin/env bash
# What attar writes, loaded by the programs it is meant for: the `gguf` package, transformers with compressed-tensors and with
# gptqmodel, and llama.cpp. Their packages come from PyPI into a folder under ~/.cache; what cannot be had is skipped visibly.
#   run.sh ATTAR_BINARY
set -euo pipefail
attar=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
shared=${ATTAR_SHARED:-$root/../shared}
peers=${ATTAR_PEERS:-$HOME/.cache/attar-peers}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$peers"
python=$peers/py/bin/python
if ! "$python" -c 'import torch, transformers, gguf, compressed_tensors' 2>/dev/null; then
  echo "installing Python peers"
  python3 -m venv "$peers/py"
  "$peers/py/bin/pip" install --quiet --upgrade pip
  if ! "$peers/py/bin/pip" install --quiet torch transformers gguf compressed-tensors accelerate; then
    echo "skipped: the Python peers could not be installed"
    exit 0
  fi
fi

echo "--- a browser: opens our pages, and finds nothing wrong with them"
"$here/check_page.sh" "$attar"

model=$root/fixtures/books-2m
calib=$root/fixtures/calibration.txt
text=$root/fixtures/heldout.txt
scores=(--text "$text" --ctx 512)

echo "--- gguf package: opens our files, and dequantizes them to the very same bits"
for scheme in q8_0 q6_k q5_k_m q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 f16 bf16; do
  "$attar" quantize "$model" -o "$work/$scheme.gguf" --scheme "$scheme" --calib "$calib" --ctx 512 --no-eval --quiet \
    --json "$work/$scheme.json" >/dev/null
  "$python" "$here/check_gguf.py" "$work/$scheme.gguf" "$work/$scheme.json"
done

echo "--- transformers with compressed-tensors: loads our folders, and scores the perplexity we report"
for scheme in w4a16-g64 w4a16-g64-asym w3a16-g64 w8a16-g128 fp8 nvfp4 w8a8:rtn fp8-tensor:rtn fp8-block:rtn mxfp8:rtn mxfp4:rtn; do
  by=(--calib "$calib")
  [[ $scheme != *:rtn ]] || by=(--method rtn --chunks 8)
  scheme=${scheme%:rtn}
  "$attar" quantize "$model" -o "$work/$scheme" --scheme "$scheme" "${by[@]}" "${scores[@]}" --convention hf --quiet \
    --json "$work/$scheme.json" >/dev/null
  "$python" "$here/check_folder.py" "$work/$scheme" "$work/$scheme.json" "$text" 2>"$work/log" || { cat "$work/log"; exit 1; }
done

echo "--- the compressed-tensors package: decodes our folders to the very numbers that we do"
decoded=()
for scheme in w4a16-g64 w4a16-g64-asym w3a16-g64 w8a16-g128 fp8 nvfp4 w8a8 fp8-tensor fp8-block mxfp8 mxfp4; do
  "$attar" convert "$work/$scheme" -o "$work/plain-$scheme" --quiet >/dev/null
  decoded+=("$work/$scheme" "$work/plain-$scheme")
done
"$python" "$here/check_decoded.py" "${decoded[@]}" 2>"$work/log" || { cat "$work/log"; exit 1; }

echo "--- codes that change their container: the gguf package and transformers read what they read before"
for scheme in w4a16-g64 w4a16-g64-asym w3a16-g64 w8a16-g128 mxfp4; do
  "$attar" convert "$work/$scheme" -o "$work/moved.gguf" --quiet --force --json "$work/moved.json" >/dev/null
  "$python" "$here/check_gguf.py" "$work/moved.gguf" "$work/moved.json"
done
for scheme in q4_0 q8_0; do
  "$attar" convert "$work/$scheme.gguf" -o "$work/moved-$scheme" --format compressed-tensors --quiet >/dev/null
  "$attar" eval "$work/$scheme.gguf" "${scores[@]}" --convention hf --chunks 8 --quiet --json "$work/moved.json" >/dev/null
  "$python" "$here/check_folder.py" "$work/moved-$scheme" "$work/moved.json" "$text" 2>"$work/log" || { cat "$work/log"; exit 1; }
done

echo "--- transformers with gptqmodel: loads our GPTQ and AWQ folders, and scores the perplexity we report; we do of what gptqmodel writes"
by_gptqmodel=$peers/gptqmodel/bin/python
if ! "$by_gptqmodel" -c 'import torch, transformers, optimum, gptqmodel' 2>/dev/null; then
  python3 -m venv "$peers/gptqmodel"
  # With a torch of its own and code to be built it may take long: then it is left out.
  pip=(timeout 240 "$peers/gptqmodel/bin/pip" install --quiet)
  "${pip[@]}" --upgrade pip setuptools wheel && "${pip[@]}" torch transformers accelerate &&
    "${pip[@]}" --no-build-isolation gptqmodel optimum || true
fi
if ! "$by_gptqmodel" -c 'import torch, transformers, optimum, gptqmodel' 2>/dev/null; then
  echo "skipped: gptqmodel could not be installed"
else
  for made in gptq:w4a16-g64 gptq:w3a16-g64-asym awq:w4a16-g64-asym; do
    "$attar" quantize "$model" -o "$work/$made" --format "${made%:*}" --scheme "${made#*:}" --method rtn "${scores[@]}" --chunks 8 \
      --convention hf --quiet --json "$work/made.json" >/dev/null
    "$by_gptqmodel" "$here/check_folder.py" "$work/$made" "$work/made.json" "$text" >"$work/told" 2>"$work/log" ||
      { cat "$work/told" "$work/log"; exit 1; }
    grep transformers "$work/told"
  done
  "$attar" convert "$work/q4_0.gguf" -o "$work/gptq:of q4_0" --format gptq --quiet >/dev/null
  "$attar" eval "$work/q4_0.gguf" "${scores[@]}" --convention hf --chunks 8 --quiet --json "$work/made.json" >/dev/null
  "$by_gptqmodel" "$here/check_folder.py" "$work/gptq:of q4_0" "$work/made.json" "$text" >"$work/told" 2>"$work/log" ||
    { cat "$work/told" "$work/log"; exit 1; }
  grep transformers "$work/told"
  # It leaves a folder of logs where it runs.
  (cd "$work" && "$by_gptqmodel" "$here/make_gptq.py" "$model" "$calib" "$work/by-gptqmodel" 4 64) >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  "$attar" eval "$work/by-gptqmodel" "${scores[@]}" --convention hf --chunks 8 --quiet --json "$work/made.json" >/dev/null
  "$by_gptqmodel" "$here/check_folder.py" "$work/by-gptqmodel" "$work/made.json" "$text" >"$work/told" 2>"$work/log" ||
    { cat "$work/told" "$work/log"; exit 1; }
  grep transformers "$work/told"
fi

echo "--- transformers: loads the folders that GGUF files of every kind of type become, and scores what attar says of the file"
"$attar" imatrix "$model" --text "$calib" --chunks 8 -o "$work/folders.imatrix.gguf" --quiet >/dev/null
for scheme in f32 bf16 q8_0 q4_0 q5_1 q4_k_m q6_k iq4_xs nvfp4 iq3_s iq2_xs iq1_m q2_0 tq1_0 q1_0; do
  by=(--method rtn)
  [[ $scheme == @(f32|bf16) ]] || by+=(--imatrix "$work/folders.imatrix.gguf")
  "$attar" quantize "$model" -o "$work/out.gguf" --scheme "$scheme" "${by[@]}" --no-eval --quiet --force --split-max-size 1MB >/dev/null
  file=$(ls "$work"/out.gguf "$work"/out-00002-of-*.gguf 2>/dev/null | tail -1 || true) # any part is the whole
  "$attar" convert "$file" -o "$work/back-$scheme" --quiet >/dev/null
  "$attar" eval "$file" "${scores[@]}" --convention hf --chunks 8 --quiet --json "$work/back.json" >/dev/null
  "$python" "$here/check_folder.py" "$work/back-$scheme" "$work/back.json" "$text" 2>"$work/log" || { cat "$work/log"; exit 1; }
  rm -f "$work"/out.gguf "$work"/out-0*.gguf
done

echo "--- lm-evaluation-harness: the same answers, item by item"
tasks=("$shared"/text/tasks/{arc_easy,piqa,winogrande,lambada_openai}.jsonl)
if [[ ! -e ${tasks[0]} ]]; then
  echo "skipped: there are no tasks"
elif ! "$python" -c 'import lm_eval' 2>/dev/null && ! "$peers/py/bin/pip" install --quiet lm_eval; then
  echo "skipped: the harness could not be installed"
else
  "$attar" eval "$model" "${tasks[@]/#/--task=}" --items 40 --quiet --json "$work/tasks.json" >/dev/null
  "$python" "$here/check_tasks.py" "$model" "$work/tasks.json" "${tasks[@]}" --items 40 >"$work/told" 2>"$work/log" ||
    { cat "$work/told" "$work/log"; exit 1; }
  grep differing "$work/told"
fi

pruned() {
  echo "--- pruned models: transformers and llama.cpp load them, and score what we report"
  "$here/check_pruned.sh" "$attar" "$python" "$peers/llamacpp" "$model" "$calib" "$text"
}

if [[ ! -e $shared/tools/peers/kld.sh ]]; then
  echo "skipped: llama.cpp, its build script is not here"
  pruned
  exit 0
fi
echo "--- llama.cpp: loads our GGUF files, and agrees with our figures"
PYTHON=$python "$here/check_llamacpp.sh" "$attar" "$shared/tools/peers" "$peers/llamacpp" "$work"
"$here/check_logits.sh" "$attar" "$peers/llamacpp" "$work"

echo "--- importance matrices: those of llama-imatrix, read and used by either"
"$here/check_imatrix.sh" "$attar" "$python" "$peers/llamacpp" "$work"

echo "--- file types: the tensor types, sizes and blocks of llama-quantize"
"$here/check_types.sh" "$attar" "$python" "$peers/llamacpp" "$shared" "$work"
pruned

echo "--- every family: transformers and llama.cpp load what we write of it, and agree with our figures"
if [[ -x $peers/llamacpp/bin/llama-perplexity ]]; then
  mkdir "$work/families"
  "$here/check_families.sh" "$attar" "$python" "$peers/llamacpp" "$work/families"
else
  echo "skipped: llama.cpp is not there"
fi
