#!/usr/bin/env bash
# The whole of this example in about a minute: every command runs and programs are tested in the sandbox, but nothing is
# learned beyond what a program looks like. `make example NAME=tiny-code`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml sft "$here/sft.yaml" run_dir="$out/sft" data.length=2 data.count=2000
priml train "$here/train.yaml" run_dir="$out" policy.model="$out/sft/model" steps=2 filter=null batch.prompts=8 \
    data.train.length=2 data.train.count=64 evaluate.data.length=2 evaluate.data.count=32
priml eval "$here/eval.yaml" run_dir="$out/eval" model="$out/model" data.held_out.length=2 data.held_out.count=32
priml report "$out"
test -s "$out/report.html"
