#!/usr/bin/env bash
# What each pruning criterion costs, with and without the repair: KL divergence from the original and perplexity.
#   prune.sh ATTAR_BINARY MODEL CALIB TEXT [ARGUMENTS OF EVERY RUN...]
# Width first: half of the channels and of the query heads by every criterion. Then depth: half of the layers. Then all of it.
set -euo pipefail
attar=$(realpath "$1") model=$2 calib=$3 text=$4
shift 4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

row() {
  local name=$1
  shift
  "$attar" prune "$model" -o "$work/out" --calib "$calib" --text "$text" "$@" --force --quiet --json "$work/r.json" >/dev/null
  python3 - "$name" "$work/r.json" <<'PY'
import json, sys
name, path = sys.argv[1:]
r = json.load(open(path))
e, p = r["evaluation"], r["pruning"]
share = p["after"]["parameters"] / p["before"]["parameters"]
gone = ",".join(str(d["layer"]) for d in p.get("dropped_layers", [])) or "-"
print(f"| {name} | {share:.1%} | {e['kl_divergence']['mean']:.4f} | {e['perplexity']['value']:.3f} | {gone} | {r['run']['seconds']:.1f} s |", flush=True)
PY
}

echo "| what | parameters | KL divergence | perplexity | layers that go | time |"
echo "|:--|--:|--:|--:|:--|--:|"
for criterion in second-order activation fluctuation taylor magnitude; do
  for repair in "" --no-repair; do
    row "ffn 0.5, $criterion $repair" --ffn 0.5 --criterion $criterion $repair "$@"
  done
done
for criterion in second-order activation fluctuation taylor magnitude; do
  for repair in "" --no-repair; do
    row "heads 0.5, $criterion $repair" --heads 0.5 --criterion $criterion $repair "$@"
  done
done
for criterion in loss block-influence angular; do
  row "layers 4, $criterion" --layers 4 --depth-criterion $criterion "$@"
done
for criterion in second-order activation fluctuation taylor magnitude; do
  for repair in "" --no-repair; do
    row "layers 6, ffn 0.5, $criterion $repair" --layers 6 --ffn 0.5 --criterion $criterion $repair "$@"
  done
done
row "hidden 0.75" --hidden 0.75 "$@"
