#!/usr/bin/env bash
# The plan of this recipe, and one step of it at toy size. Installs the `lora` extra when it is missing.
# `make example NAME=qwen2.5-1.5b-lora-24gb`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python -c 'import peft' 2>/dev/null || python -m pip --disable-pip-version-check install -qq -c ../../constraints.txt peft
priml plan train.yaml --device rtx4090 --prompt-tokens 110 --response-tokens 300
../toy_recipe.sh train.yaml gsm8k
