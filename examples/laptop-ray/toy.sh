#!/usr/bin/env bash
# The whole of this example at a size where nothing is learned: two ranks, then one, resumed. Installs the `cluster`
# extra when it is missing. `make example NAME=laptop-ray`.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
export OMP_NUM_THREADS=1
python -c 'import ray' 2>/dev/null || python -m pip --disable-pip-version-check install -qq -c "$root/constraints.txt" ray
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

priml sft "$here/../laptop-math/sft.yaml" run_dir="$out/sft" data.count=3200
priml train "$here/train.yaml" run_dir="$out/run" policy.model="$out/sft/model" steps=1 filter=null batch.prompts=8 \
    data.train.count=64 evaluate.data.count=32
# The same run, one step longer, by one rank: a finished run has a summary, so that goes first.
rm "$out/run/summary.json"
sed -i 's/^steps: 1$/steps: 2/; s/^  ranks: 2$/  ranks: 1/' "$out/run/config.yaml"
priml train "$out/run"
grep -q '"step": 2.*"idle/sampler"' "$out/run/metrics.jsonl"
test -s "$out/run/model/model.safetensors"
