#!/usr/bin/env bash
# The settings of this recipe with a model of half a million weights and made-up problems in the form of GSM8K: every
# part runs, nothing is learned, nothing is downloaded. `make example NAME=qwen2.5-0.5b-gsm8k-1gpu`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml plan "$here/train.yaml" --gpus 1 --gpu-memory 80 --prompt-tokens 110 --response-tokens 300
for i in $(seq 1 32); do
    echo "{\"question\": \"$i apples and $((i + 2)) pears: how many?\", \"answer\": \"$i+$((i + 2))\\n#### $((2 * i + 2))\"}"
done >"$out/problems.jsonl"
priml sft "$here/../laptop-math/sft.yaml" run_dir="$out/sft" data.count=1280
data="{kind: file, path: $out/problems.jsonl}"
priml train "$here/train.yaml" run_dir="$out/run" policy.model="$out/sft/model" data.train="$data" evaluate.data="$data" \
    steps=2 batch.prompts=4 batch.draw=4 filter=null overlong.kind=keep sampling.max_new_tokens=24 \
    backend.micro_batch_tokens=4096
priml report "$out/run"
test -s "$out/run/report.html"
