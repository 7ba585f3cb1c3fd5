#!/usr/bin/env bash
# The whole of this example at a size where nothing is learned, and the tests that need vLLM, in an environment of its
# own. `make example NAME=laptop-vllm`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
"$root/tools/setup.sh" vllm
export PATH=$root/.venv-vllm/bin:$PATH OMP_NUM_THREADS=1
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml sft "$here/../laptop-math/sft.yaml" run_dir="$out/sft" data.count=3200
priml train "$here/train.yaml" run_dir="$out/run" policy.model="$out/sft/model" steps=2 filter=null batch.prompts=8 \
    data.train.count=64 evaluate.data.count=32
priml eval "$here/eval.yaml" run_dir="$out/eval" model="$out/run/model" data.held_out.count=32
grep -q '"sampler/mismatch_max"' "$out/run/metrics.jsonl"
# The engine in the process of a Ray sampler, beside two ranks that hold the weights in shards.
priml train "$here/../laptop-ray/train.yaml" run_dir="$out/ray" policy.model="$out/sft/model" steps=1 filter=null \
    batch.prompts=8 data.train.count=64 evaluate=null sampler='{kind: vllm, kv_cache_gib: 0.25}'
grep -q '"sampler/mismatch_max".*"idle/sampler"' "$out/ray/metrics.jsonl"
cd "$root"
pytest -m "vllm and not slow" tests/rollout/test_vllm.py
