#!/usr/bin/env bash
# The whole of this example in about a minute: every command runs, nothing is learned. `make example NAME=laptop-math`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml sft "$here/sft.yaml" run_dir="$out/sft" data.count=3200
priml train "$here/train.yaml" run_dir="$out" policy.model="$out/sft/model" steps=2 filter=null batch.prompts=8 \
    data.train.count=64 evaluate.data.count=32
priml eval "$here/eval.yaml" run_dir="$out/eval" model="$out/model" data.held_out.count=32
priml report "$out"
test -s "$out/report.html"
