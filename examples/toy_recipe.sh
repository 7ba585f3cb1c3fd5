#!/usr/bin/env bash
# One step of a recipe with a model of half a million weights and made-up problems of some kinds (toy_rows.py), for its
# toy.sh: `toy_recipe.sh SETTINGS KIND...`. It runs in one process and with the transformers sampler, since Ray and vLLM
# have examples of their own (laptop-ray, laptop-vllm). Nothing is learned, nothing is downloaded.
set -euo pipefail
examples=$(dirname "${BASH_SOURCE[0]}")
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

python "$examples/toy_rows.py" "$out/problems.jsonl" "${@:2}"
priml sft "$examples/laptop-math/sft.yaml" run_dir="$out/sft" data.count=64
data="{kind: file, path: $out/problems.jsonl}"
priml train "$1" run_dir="$out/run" policy.model="$out/sft/model" data.train="$data" evaluate.data="$data" \
    backend='{kind: local, micro_batch_tokens: 4096}' sampler='{kind: transformers}' \
    steps=1 batch.prompts=4 batch.draw=4 filter=null overlong='{kind: keep}' sampling.max_new_tokens=24
priml report "$out/run"
test -s "$out/run/report.html" && test -s "$out/run/model/model.safetensors"
