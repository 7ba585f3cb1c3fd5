#!/usr/bin/env bash
# The plan of this recipe, and one step of it at toy size. `make example NAME=eurus2-7b-8gpu`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
priml plan train.yaml --gpus 8 --device a800 --prompt-tokens 256 --response-tokens 1435
../toy_recipe.sh train.yaml math code
