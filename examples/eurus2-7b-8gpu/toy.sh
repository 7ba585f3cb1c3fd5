#!/usr/bin/env bash
# The plan of this recipe, and its settings with a model of half a million weights and made-up problems: in one process
# (`backend: {kind: local}`) and with the transformers sampler, since Ray and vLLM have examples of their own
# (laptop-ray, laptop-vllm). Nothing is learned, nothing is downloaded. `make example NAME=eurus2-7b-8gpu`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml plan "$here/train.yaml" --gpus 8 --device a800 --prompt-tokens 256 --response-tokens 1435
python "$here/../eurus2-7b-8gpu/toy_rows.py" "$out/problems.jsonl"
priml sft "$here/../laptop-math/sft.yaml" run_dir="$out/sft" data.count=64
data="{kind: file, path: $out/problems.jsonl}"
priml train "$here/train.yaml" run_dir="$out/run" policy.model="$out/sft/model" data.train="$data" evaluate.data="$data" \
    backend='{kind: local, micro_batch_tokens: 4096}' sampler='{kind: transformers}' \
    steps=1 batch.prompts=4 batch.draw=4 filter=null sampling.max_new_tokens=24
test -s "$out/run/model/model.safetensors"
