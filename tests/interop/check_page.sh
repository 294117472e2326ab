#!/usr/bin/env bash
# Reports as pages: made by the real program, opened in a real browser.
#   check_page.sh ATTAR_BINARY [SHOTS]
# SHOTS is a folder for pictures of all pages, to be looked at. Without Chromium this is skipped visibly; in CI, as root, it is installed.
set -euo pipefail
attar=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
fixtures=$here/../../fixtures
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shots=${2:-$work/shots}

chromium=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [[ -z $chromium && -n ${CI:-} && $(id -u) == 0 ]]; then
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || true
  chromium=$(command -v chromium || true)
fi
if [[ -z $chromium ]]; then
  echo "skipped: no Chromium"
  exit 0
fi

quick=(--calib "$fixtures/calibration.txt" --calib-tokens 4096 --ctx 128 --text "$fixtures/heldout.txt" --chunks 12 --quiet)
"$attar" quantize "$fixtures/books-2m" -o "$work/q4_k_m.gguf" --scheme q4_k_m "${quick[@]}" --report "$work/quantized" >/dev/null
"$attar" quantize "$fixtures/books-2m" -o "$work/w3" --scheme w3a16-g64 --method rtn "${quick[@]}" --report "$work/rounded" >/dev/null
"$attar" quantize "$fixtures/books-2m" -o "$work/q8_0.gguf" --scheme q8_0 "${quick[@]}" --report "$work/q8_0" >/dev/null
"$attar" prune "$fixtures/books-2m" -o "$work/cut" --ffn 0.5 "${quick[@]}" --report "$work/pruned" >/dev/null
"$attar" distill --teacher "$fixtures/books-2m" --student "$work/cut" -o "$work/taught" --data "$fixtures/calibration.txt" --tokens 8192 \
  --ctx 128 --text "$fixtures/heldout.txt" --chunks 12 --quiet --report "$work/distilled" >/dev/null
reports=("$work"/{quantized,rounded,q8_0,pruned,distilled}/report.json)
"$attar" report "${reports[@]}" --report "$work/compared" >/dev/null
"$attar" report "${reports[@]:0:2}" --report "$work/changed" >/dev/null

python3 "$here/check_page.py" "$chromium" "$shots" "$work"/*/report.html "$work"/{quantized,distilled,compared}/plots/*.svg
