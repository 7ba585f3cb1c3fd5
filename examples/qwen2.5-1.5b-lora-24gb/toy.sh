#!/usr/bin/env bash
# The plan of this recipe, and its settings with a model of half a million weights and made-up problems: with adapters
# (the `lora` extra is installed when it is missing), and with the transformers sampler, since vLLM has an example of
# its own (laptop-vllm). Nothing is learned, nothing is downloaded. `make example NAME=qwen2.5-1.5b-lora-24gb`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python -c 'import peft' 2>/dev/null || python -m pip --disable-pip-version-check install -qq -c "$here/../../constraints.txt" peft
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml plan "$here/train.yaml" --device rtx4090 --prompt-tokens 110 --response-tokens 300
for i in $(seq 1 16); do
    echo "{\"question\": \"$i apples and $((i + 2)) pears: how many?\", \"answer\": \"$i+$((i + 2))\\n#### $((2 * i + 2))\"}"
done >"$out/problems.jsonl"
priml sft "$here/../laptop-math/sft.yaml" run_dir="$out/sft" data.count=64
data="{kind: file, path: $out/problems.jsonl}"
priml train "$here/train.yaml" run_dir="$out/run" policy.model="$out/sft/model" data.train="$data" evaluate.data="$data" \
    backend.micro_batch_tokens=4096 sampler='{kind: transformers}' \
    steps=1 batch.prompts=4 batch.draw=4 filter=null overlong.kind=keep sampling.max_new_tokens=24
test -s "$out/run/model/model.safetensors"
