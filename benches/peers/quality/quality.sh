#!/usr/bin/env bash
# attar and its peers at the same number formats, calibration tokens and held-out texts: KL divergence, perplexity, CPU time, memory.
#   quality.sh install PEER...                                   # each in an environment of its own: 5 to 6 GB, CUDA's wheels most of it
#   quality.sh windows MODEL CALIB                               # 256 windows of 512 tokens, the ones attar quantize takes
#   quality.sh run PEER MODEL METHOD:SCHEME...                   # peer.py says what there is
#   quality.sh attar ATTAR MODEL CALIB METHOD:SCHEME[:OPTION]... # the same for attar
#   quality.sh score ATTAR MODEL HELD_OUT...                     # adds to results.jsonl
#   quality.sh table
# PEER is one of the files in requirements/. Everything goes to $PEERS_WORK (./peers-work). Environments lie in ~/.cache/attar-peers, made with
# `uv` where it is installed (files that environments have in common are then on the disk once), else with venv and pip. All compute on one
# thread: what is compared is CPU time, and threads that wait for each other on a shared machine spend it too.
set -euo pipefail
here=$(dirname "$(realpath "$0")") work=${PEERS_WORK:-peers-work} homes=~/.cache/attar-peers
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1 TQDM_DISABLE=1 PYTHONDONTWRITEBYTECODE=''

install() {
  local home=$homes/$1 packages="$here/requirements/$1.txt"
  if command -v uv >/dev/null; then
    uv venv --seed --quiet "$home"
    local add=(uv pip install --quiet --python "$home" --compile-bytecode)
  else
    python3 -m venv "$home"
    local add=("$home/bin/pip" install --quiet)
  fi
  # What builds itself from source against torch wants torch first.
  grep -E '^(torch|transformers|numpy)==' "$packages" | xargs "${add[@]}" setuptools wheel ninja packaging
  "${add[@]}" --no-build-isolation -r "$packages"
  du -sh "$home"
}

command=${1:-}
[ $# -gt 0 ] && shift
case $command in windows | run | attar | score) mkdir -p "$work" ;; esac
case $command in
  install) for peer in "$@"; do install "$peer"; done ;;
  windows) "$homes/llm-compressor/bin/python" "$here/windows.py" "$1" "$2" 131072 512 "$work/$(basename "$1").windows.json" ;;
  run) peer=$1 model=$2
    shift 2
    "$homes/$peer/bin/python" "$here/peer.py" "$peer" "$model" "$work/$(basename "$model").windows.json" "$work" "$@" ;;
  attar) binary=$1 model=$2 calib=$3
    shift 3
    python3 "$here/scores.py" attar "$binary" "$model" "$calib" "$work" "$@" ;;
  score) binary=$1 model=$2
    shift 2
    python3 "$here/scores.py" score "$binary" "$model" "$work" "$work/results.jsonl" "$@" ;;
  table) python3 "$here/scores.py" table "$work/results.jsonl" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
