#!/usr/bin/env bash
# The plan of this recipe, and one step of it at toy size. `make example NAME=code-leetcode`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
priml plan train.yaml --gpus 8 --prompt-tokens 256 --response-tokens 1435
../toy_recipe.sh train.yaml code
