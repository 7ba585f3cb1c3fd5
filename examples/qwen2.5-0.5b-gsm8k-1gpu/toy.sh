#!/usr/bin/env bash
# The plan of this recipe, and one step of it at toy size. `make example NAME=qwen2.5-0.5b-gsm8k-1gpu`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
priml plan train.yaml --gpus 1 --gpu-memory 80 --prompt-tokens 110 --response-tokens 300
../toy_recipe.sh train.yaml gsm8k
