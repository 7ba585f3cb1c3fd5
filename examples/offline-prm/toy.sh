#!/usr/bin/env bash
# The whole of this example at a size where next to nothing is learned: `make example NAME=offline-prm`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml sft "$here/sft.yaml" run_dir="$out/sft" data.count=960
priml eval "$here/eval.yaml" run_dir="$out/responses" model="$out/sft/model" data.train.count=24 data.test.count=8
priml prm train "$here/prm-train.yaml" run_dir="$out/prm" model="$out/sft/model" \
    data.path="$out/responses/train.parquet" batch=64 epochs=1
priml report "$out/prm"
priml prm score "$here/prm-score.yaml" run_dir="$out/scores" prm.model="$out/prm/model" \
    data.path="$out/responses/test.parquet"
priml prm rank "$here/prm-rank.yaml" run_dir="$out/rank" data.path="$out/scores/scores.parquet"
python "$here/label_steps.py" "$here/eval.yaml" "$out/responses/test.parquet" "$out/process.jsonl"
priml prm evaluate "$here/prm-evaluate.yaml" run_dir="$out/evaluation" prm.model="$out/prm/model" \
    data.chain.path="$out/process.jsonl" training.responses="$out/responses/train.parquet" \
    threshold='{kind: fixed, value: 0.0}' # of responses that are all wrong none can be chosen
test -s "$out/prm/report.html" && test -s "$out/scores/report.html" && test -s "$out/rank/report.html"
test -s "$out/evaluation/evaluation.json"
